"""The timeline: when each operation of a step begins and ends, by discrete-event simulation.

The host issues the program in order. Each stream runs its operations one after another; each starts
when the operations that it waits for have ended. Operations that run at the same time on one bus
share it equally. One rank is simulated, and all ranks are assumed to run at its pace.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass

from bench.simulator.cost_model import Clock
from bench.simulator.program import HOOKS, HOST, TO_DEVICE, TO_HOST, Op, Program, Wait

_COPIES = (TO_HOST, TO_DEVICE)
_PARTS = ("compute", "communication", "offload", "idle")


@dataclass(frozen=True, slots=True)
class Span:
    """One operation in time, in seconds from the step's beginning."""

    op: Op
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Timeline:
    """A step of one rank in time."""

    spans: list[Span]

    @property
    def step_s(self) -> float:
        """Seconds from the first operation's beginning to the last one's end."""
        return max((span.end_s for span in self.spans), default=0.0)

    def split_s(self) -> dict[str, float]:
        """Divide the step into seconds of compute, communication, offload and idle time.

        Each moment counts once: for compute if anything computes, else for communication if a
        collective runs, else for offload if a copy or the host's own work runs. It is idle if
        nothing runs, or only the hooks of ZeRO.
        """
        edges: list[tuple[float, int, str]] = []
        for span in self.spans:
            if (part := _part(span.op)) == "idle":
                continue
            edges += [(span.start_s, 1, part), (span.end_s, -1, part)]
        split: dict[str, float] = dict.fromkeys(_PARTS, 0.0)
        running: Counter[str] = Counter()
        before = 0.0
        for at, change, part in sorted(edges):
            counted = next((name for name in split if running[name]), "idle")
            split[counted] += at - before
            running[part] += change
            before = at
        return split


def _part(op: Op) -> str:
    if op.ranks:
        return "communication"
    if op.kind == HOOKS:
        return "idle"
    return "offload" if op.kind in (*_COPIES, HOST) else "compute"


@dataclass(slots=True)
class _Running:
    index: int
    start_s: float
    left_s: float
    bus: str


class _Simulation:
    """The state of streams and host at one moment."""

    def __init__(self, program: Program, clock: Clock) -> None:
        self.program, self.clock = program, clock
        self.now_s = 0.0
        self.next_action = 0  # the host's index in the program
        self.host_is_free_s = 0.0
        self.met_s = 0.0  # when the ranks last waited for each other, as at the beginning of a step
        self.queues: dict[str, deque[int]] = defaultdict(deque)
        self.running: dict[str, _Running] = {}
        self.ended: set[int] = set()
        self.spans: list[Span] = []

    def run(self) -> list[Span]:
        while self.next_action < len(self.program) or self.running or any(self.queues.values()):
            self._host()
            self._start()
            self._advance()
        return self.spans

    def _host(self) -> None:
        """Let the host issue every operation that it can at this moment."""
        while self.next_action < len(self.program) and HOST not in self.running:
            if self.host_is_free_s > self.now_s:
                break
            action = self.program[self.next_action]
            if isinstance(action, Wait):
                if not self.ended.issuperset(action.after):
                    break
                if any(self._op(index).ranks for index in action.after):
                    self.met_s = self.now_s
            else:
                self.queues[action.stream].append(self.next_action)
                if action.stream != HOST:
                    self.host_is_free_s = self.now_s + self.clock.speeds.issue_s
            self.next_action += 1
            if self.queues[HOST]:
                self._begin(HOST)

    def _start(self) -> None:
        """Begin the first operation of each stream if it has nothing left to wait for."""
        for stream, queue in self.queues.items():
            if queue and stream not in self.running:
                op = self._op(queue[0])
                if self.ended.issuperset(op.after):
                    self._begin(stream)

    def _begin(self, stream: str) -> None:
        index = self.queues[stream].popleft()
        op = self._op(index)
        seconds = self.clock.seconds(op) + self.clock.skew_s(op, self.now_s - self.met_s)
        if stream == HOST and op.kind != HOOKS:
            seconds += self.clock.speeds.issue_s
        self.running[stream] = _Running(index, self.now_s, seconds, self.clock.bus(op))

    def _op(self, index: int) -> Op:
        op = self.program[index]
        assert isinstance(op, Op), "waits are not waited for"
        return op

    def _advance(self) -> None:
        """Advance to the next moment at which an operation ends, or the host is free."""
        sharing = Counter(r.bus for r in self.running.values() if r.bus)
        slower = {stream: max(1.0, sharing[r.bus]) for stream, r in self.running.items()}
        ops = {stream: self._op(r.index) for stream, r in self.running.items()}
        if any(op.ranks for op in ops.values()):
            for stream, op in ops.items():
                slower[stream] *= self.clock.beside_a_collective(op)
        waits = [r.left_s * slower[stream] for stream, r in self.running.items()]
        if self.host_is_free_s > self.now_s:
            waits.append(self.host_is_free_s - self.now_s)
        assert waits, "a program waits only for earlier operations"
        passed = min(waits)
        self.now_s += passed
        for stream, running in list(self.running.items()):
            running.left_s -= passed / slower[stream]
            if running.left_s <= 1e-12:
                del self.running[stream]
                self.ended.add(running.index)
                self.spans.append(Span(self._op(running.index), running.start_s, self.now_s))


def simulate(program: Program, clock: Clock) -> Timeline:
    """Simulate a program.

    Args:
        clock: Gives the seconds of each operation by itself.
    """
    return Timeline(_Simulation(program, clock).run())
