"""What the fork server imports once, so that ranks start in milliseconds."""

import torch._dynamo
import torch.distributed.fsdp
import torch.utils.checkpoint  # noqa: F401

import methods  # noqa: F401
import odysseus.hf
import odysseus.training.trainer  # noqa: F401
import tests.support.hf_models  # noqa: F401
