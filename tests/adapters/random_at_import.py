"""Random generators of every kind, made while the module is imported."""

from __future__ import annotations

import functools
import os
import random
import secrets
import tempfile
import time
import uuid
from typing import Any

import numpy as np

import snakepit_trio as sp

random.seed(1)
np.random.seed(1)
own = random.Random()
seeded = random.Random(1)
rng = np.random.default_rng()
state = np.random.RandomState()


class Model:
    noise = {"deep": [np.random.Generator(np.random.MT19937())]}


bound = functools.partial(np.random.default_rng().random)


@sp.tool
def draw() -> dict[str, Any]:
    time.sleep(0.02)
    return {
        "pid": os.getpid(),
        "random": random.random(),
        "Random": own.random(),
        "seeded": seeded.random(),
        "numpy": float(np.random.random()),
        "default_rng": float(rng.random()),
        "spawned": float(rng.spawn(1)[0].random()),
        "RandomState": float(state.random_sample()),
        "in a class": float(Model.noise["deep"][0].random()),
        "bound": float(bound()),
        "uuid4": str(uuid.uuid4()),
        "uuid1": str(uuid.uuid1()),
        "temporary": tempfile.mktemp(),
        "secrets": secrets.token_hex(8),
    }
