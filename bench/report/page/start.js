// The page: its state, its cards and its table.

const run = JSON.parse(document.getElementById("state").textContent);
const OVERDUE_RELOAD_S = 60;

function silence() { // seconds since the sweep wrote the page
  return Date.now() / 1000 - run.written_s;
}

function minutes(seconds) {
  const whole = Math.floor(seconds / 60);
  return whole === 1 ? "1 minute" : `${whole} minutes`;
}

function showHeading() {
  let status = run.status;
  if (run.reload_s > 0 && silence() > run.news_s) {
    status = `no news for ${minutes(silence())}: the sweep has probably stopped`;
  } else if (run.reload_s > 0 && silence() >= 60) {
    status += `; last news ${minutes(silence())} ago`;
  }
  document.getElementById("heading").textContent = [run.heading, status].filter(Boolean).join("; ");
}

showHeading();
document.getElementById("notes").append(
  ...content.notes.map((note) => element("li", { textContent: note })));
document.getElementById("left_out").textContent = content.left_out;
const cards = content.cards.map(makeCard);
document.getElementById("cards").append(...cards);
document.getElementById("contents").append(...[...cards, document.getElementById("rows")].map(
  (card) => element("a", { href: `#${card.id}`, textContent: card.querySelector("h2").textContent }),
));
makeTable();
cards.forEach((card) => card.start());
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) { // a phone's height changes as its bars come and go
    width = innerWidth;
    cards.forEach((card) => card.redraw());
  }
});
dark.addEventListener("change", () => cards.forEach((card) => card.recolor()));
if (run.reload_s > 0) {
  const wait = silence() > run.news_s ? OVERDUE_RELOAD_S : run.reload_s;
  setTimeout(() => location.reload(), 1000 * wait);
}
document.documentElement.dataset.ready = "true";
