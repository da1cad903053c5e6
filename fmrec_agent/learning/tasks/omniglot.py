"""Few-shot Omniglot: tell `ways` characters apart from `shots` drawings of each (Vinyals et al. 2016; Finn et al., ICML 2017, section 5.2).

1. Characters are shuffled by the data seed. The last `held_out` are for targets alone; the others are dealt out to the sources, one each
   in turn, so that no two sources have a character in common.
2. A source's classes are its characters turned by 0, 90, 180 and 270 degrees (Santoro et al. 2016), and the mirror images of these: 8
   of each character, which is wanted where there are 200 characters and not 1200; with `jitter`, each drawing is bent a little as well,
   anew at each draw (omniglot_jitter.py), which twenty drawings of a character want. Each draw holds `meta_batch` episodes:
   `ways` classes at random, numbered at random, `shots` drawings of each to adapt on and `queries` others of each to be measured on.
3. A target is one episode of held-out characters, upright, by its index; it adapts on all of its ways x shots drawings, and in each step
   on `copies` of each that are bent anew: five drawings are soon known by heart, and the copies let it take more steps.
4. The model: 4 times (3 x 3 convolution of stride 2, batch normalisation, ReLU) of `channels` channels, then a linear layer from the
   2 x 2 x channels that are left. Normalisation takes the statistics of the batch, at test too (transductive, as in MAML's code): so the
   model is a pure function of its parameters, and a query is judged together with the other queries of its episode.

Metric: accuracy on the queries, in per cent; chance is 100 / ways. A figure is a mean over many targets.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from fmrec_agent.learning.learner import LearnerError, Role
from fmrec_agent.learning.options import LearningOptions, OmniglotOptions
from fmrec_agent.learning.streams import stream
from fmrec_agent.learning.task import Batch, Parameters, SourceTask, TargetTask
from fmrec_agent.learning.tasks.classification import Classification
from fmrec_agent.learning.tasks.omniglot_data import Omniglot, read_omniglot
from fmrec_agent.learning.tasks.omniglot_jitter import jittered

LAYERS = 4
SIDE_LEFT = 2
TURNS, FACES = 4, 2


class FewShot(Classification):
    """The model; `OmniglotSource` and `OmniglotTarget` add the data."""

    def __init__(self, options: OmniglotOptions, dtype: torch.dtype) -> None:
        self._options = options
        self._dtype = dtype

    def initial_parameters(self, seed: int) -> dict[str, Tensor]:
        """Normal weights of variance 2 / fan-in (He et al. 2015), no shift, scale 1; the linear layer's with variance 1 / fan-in."""
        generator, channels, ways = stream("omniglot parameters", seed), self._options.channels, self._options.ways
        named: dict[str, Tensor] = {}
        for layer in range(LAYERS):
            fan_in = 9 * (channels if layer else 1)
            weight = generator.standard_normal((channels, fan_in // 9, 3, 3)) * np.sqrt(2 / fan_in)
            named[f"conv{layer}.weight"] = torch.tensor(weight, dtype=self._dtype)
            named[f"norm{layer}.weight"] = torch.ones(channels, dtype=self._dtype)
            named[f"norm{layer}.bias"] = torch.zeros(channels, dtype=self._dtype)
        features = SIDE_LEFT**2 * channels
        named["head.weight"] = torch.tensor(generator.standard_normal((ways, features)) / np.sqrt(features), dtype=self._dtype)
        named["head.bias"] = torch.zeros(ways, dtype=self._dtype)
        return named

    def logits(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """[n, ways] for pictures [n, 1, 28, 28]."""
        # A convolution has no bias: normalisation would take it off again.
        values = inputs
        for layer in range(LAYERS):
            values = functional.conv2d(values, parameters[f"conv{layer}.weight"], stride=2, padding=1)
            scale, shift = parameters[f"norm{layer}.weight"], parameters[f"norm{layer}.bias"]
            values = torch.relu(functional.batch_norm(values, None, None, scale, shift, training=True))
        return functional.linear(values.flatten(1), parameters["head.weight"], parameters["head.bias"])

    def _episode(self, classes: list[npt.NDArray[np.float32]], generator: np.random.Generator) -> tuple[Batch, Batch]:
        """Support and query of one episode of the given classes, the c-th of them [drawings, 28, 28] being number c."""
        shots, needed = self._options.shots, self._options.shots + self._options.queries
        chosen = np.stack([drawings[generator.permutation(len(drawings))[:needed]] for drawings in classes])
        return self._batch(chosen[:, :shots]), self._batch(chosen[:, shots:])

    def _batch(self, pictures: npt.NDArray[np.float32]) -> Batch:
        """Pictures [ways, k, 28, 28] as a batch of ways x k."""
        ways, number = pictures.shape[:2]
        inputs = torch.tensor(pictures, dtype=self._dtype).reshape(ways * number, 1, *pictures.shape[2:])
        return inputs, torch.arange(ways).repeat_interleave(number)


class OmniglotSource(FewShot, SourceTask):
    """A source: fresh episodes of its own classes at each draw."""

    def __init__(self, options: OmniglotOptions, data: Omniglot, characters: tuple[str, ...], dtype: torch.dtype) -> None:
        super().__init__(options, dtype)
        drawings = [_enough(options, data, name) for name in characters]
        faces = [face for each in drawings for face in (each, each[:, :, ::-1])]
        self._classes = [np.rot90(face, turn, axes=(1, 2)) for face in faces for turn in range(TURNS)]
        self.meta_batch = options.meta_batch
        self.samples = sum(len(each) for each in drawings)
        self.label = f"{len(characters)} characters of Omniglot in {options.data}"

    def draw(self, generator: np.random.Generator) -> tuple[Batch, Batch]:
        episodes = [self._episode(self._chosen(generator), generator) for _ in range(self.meta_batch)]
        supports, queries = zip(*episodes, strict=True)
        support, query = episodes[0] if self.meta_batch == 1 else (_stacked(supports), _stacked(queries))
        return _bent(support, self._options.jitter, generator), _bent(query, self._options.jitter, generator)

    def _chosen(self, generator: np.random.Generator) -> list[npt.NDArray[np.float32]]:
        return [self._classes[place] for place in generator.permutation(len(self._classes))[: self._options.ways]]


class OmniglotTarget(FewShot, TargetTask):
    """A target: the index-th episode of the data seed, of characters that no source has."""

    def __init__(self, options: OmniglotOptions, data: Omniglot, characters: tuple[str, ...], dtype: torch.dtype, index: int) -> None:
        super().__init__(options, dtype)
        generator = stream("omniglot target", options.data_seed, index)
        names = [characters[place] for place in generator.permutation(len(characters))[: options.ways]]
        self._adaptation, self._test = self._episode([_enough(options, data, name) for name in names], generator)
        self.samples = options.ways * options.shots
        self.label = f"episode {index} of Omniglot in {options.data}: {', '.join(names)}"

    def draw_adaptation(self, generator: np.random.Generator) -> Batch:
        """All of the support, there is too little to draw from; then its bent copies."""
        batches = [self._adaptation]
        batches += [_bent(self._adaptation, self._options.jitter, generator) for _ in range(self._options.copies)]
        inputs, classes = zip(*batches, strict=True)
        return torch.cat(inputs), torch.cat(classes)

    def evaluate(self, parameters: Parameters) -> tuple[float, dict[str, float]]:
        """Cross-entropy and `accuracy_percent` on the episode's queries."""
        return self.measured(parameters, self._test)


def omniglot_task(options: LearningOptions, task: OmniglotOptions, *, role: Role, index: int) -> SourceTask | TargetTask:
    """The index-th share of the sources' characters, or the index-th episode. LearnerError where the data is not to be had."""
    data, dtype = read_omniglot(task.data), getattr(torch, options.dtype)
    shuffled = tuple(data.names[place] for place in stream("omniglot characters", task.data_seed).permutation(len(data.names)))
    if task.held_out >= len(shuffled):
        raise LearnerError(
            f"{task.data} has {len(shuffled)} characters, and learning.task.held_out takes {task.held_out} for targets: set it lower"
        )
    train, held_out = shuffled[: -task.held_out], shuffled[-task.held_out :]
    if role == "target":
        if len(held_out) < task.ways:
            raise LearnerError(
                f"learning.task.held_out is {task.held_out}, but an episode has {task.ways} characters (learning.task.ways): raise it"
            )
        return OmniglotTarget(task, data, held_out, dtype, index)
    if index >= task.sources:
        raise LearnerError(
            f"there is no share number {index} of the characters: learning.task.sources is {task.sources}; raise it in every agent"
        )
    share = train[index :: task.sources]
    if TURNS * FACES * len(share) < task.ways:
        raise LearnerError(
            f"source number {index} has {len(share)} of {len(train)} characters, too few for episodes of {task.ways} (learning.task.ways): "
            "set learning.task.sources lower"
        )
    return OmniglotSource(task, data, share, dtype)


def _enough(options: OmniglotOptions, data: Omniglot, name: str) -> npt.NDArray[np.float32]:
    drawings, needed = data.drawings(name), options.shots + options.queries
    if len(drawings) < needed:
        raise LearnerError(
            f"character {name} in {options.data} has {len(drawings)} drawings, "
            f"and an episode needs {needed} (learning.task.shots + learning.task.queries): set these lower"
        )
    return drawings


def _bent(batch: Batch, strength: float, generator: np.random.Generator) -> Batch:
    return (jittered(batch[0], strength, generator), batch[1]) if strength else batch


def _stacked(batches: tuple[Batch, ...]) -> Batch:
    return torch.stack([inputs for inputs, _ in batches]), torch.stack([classes for _, classes in batches])
