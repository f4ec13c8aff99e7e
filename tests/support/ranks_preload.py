"""Imports that the fork server makes once, so that ranks start in milliseconds."""

import gc

import hypothesis  # noqa: F401
import pandas  # noqa: F401
import pytest  # noqa: F401
import torch._dynamo
import torch.distributed.fsdp
import torch.utils.checkpoint  # noqa: F401

import methods  # noqa: F401
import odysseus.hf
import odysseus.training.trainer  # noqa: F401
import tests.support.dry_run
import tests.support.hf_models
import tests.support.toggles
import tests.support.traffic  # noqa: F401

# Ranks share these objects' memory until a collection writes to them.
gc.collect()
gc.freeze()
