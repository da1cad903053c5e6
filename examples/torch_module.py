"""A torch.nn.Module and data of your own, trained by MAML (any method of fmrec_agent/learning/methods/ will do), with recovery.

    fmrec-manager serve --set tree.main.task=sines --set tree.main.sources_min=3 --set tree.main.targets_min=1
    fmrec-agent start --count 4 --set sources=3 --set task=sines --set learning.learner=examples.torch_module:learner
    fmrec-agent check-learner examples.torch_module:learner
"""

import numpy as np
import torch
from torch import nn

from fmrec_agent.learning.methods.maml import MAML
from fmrec_agent.learning.module_task import ModuleSource, ModuleTarget


def model():
    return nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))


def learner(options, *, name, role, index):
    """What FMRec calls: the agent's role and its index among those of its role pick the data."""
    generator = np.random.default_rng([role == "target", index])
    x = torch.tensor(generator.uniform(-3, 3, (200, 1)), dtype=torch.float32)
    y = torch.sin(x + generator.uniform(0, np.pi))
    first, second = (x[:100], y[:100]), (x[100:], y[100:])
    if role == "source":
        task = ModuleSource(model, nn.functional.mse_loss, first, second, batch=options.batch)
    else:
        task = ModuleTarget(model, nn.functional.mse_loss, first, second, batch=options.adapt_batch)
    return MAML(options, task, name=name)
