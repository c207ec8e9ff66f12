"""ZeRO: what each rank holds of the optimizer, the gradients and the weights is its share.

DeepSpeed does the work. This file says how a step of CLIP goes through it, and keeps what DeepSpeed
would lose: the scale's limit, float32 weights, and states that fit any world size.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clipfast.data.batch import Batch
from clipfast.encoder import Encoder
from clipfast.ranks.world import World
from clipfast.train.checkpoints.host_copy import host_copy
from clipfast.train.engines.deepspeed.config import HALVES, half_precision, make_config
from clipfast.train.engines.deepspeed.probe import (
    check_builds,
    check_optimizer,
    check_precision,
    check_zero_section,
    open_deepspeed,
)
from clipfast.train.engines.deepspeed.shards import MASTER, Shards
from clipfast.train.engines.deepspeed.state import (
    Positions,
    file_of,
    load_sharded_state,
    sharded_state,
)
from clipfast.train.engines.deepspeed.whole import as_scalars, gathered
from clipfast.train.engines.engine import Encoded, Stepped
from clipfast.train.engines.towers import MAX_LOG_SCALE, Towers
from clipfast.train.optim.optimizers import load_optimizer_state
from clipfast.weights.checkpoint import read_checkpoint, save_checkpoint
from clipfast.weights.loading import fitted

_SCALE, _BIAS = "logit_scale", "logit_bias"


def make_deepspeed_engine(
    args: argparse.Namespace,
    model: Any,
    encoder: Encoder,
    world: World,
    make_optimizer: Callable[[Any], torch.optim.Optimizer],
) -> DeepSpeedEngine:
    """The engine of `--zero-stage` and `--deepspeed-config`.

    Args:
        model: on its device, with what is locked locked.
        encoder: of the model, in `forward_precision`.
        make_optimizer: model -> optimizer over its parameters that train.

    Raises:
        UserError: DeepSpeed cannot do here what the flags ask for.
    """
    deepspeed = open_deepspeed(world)
    half = half_precision(args, world.device)
    check_precision(deepspeed, half, args.precision, args.zero_stage)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    config = make_config(args, world.device, world.size, trained)
    check_zero_section(deepspeed, config["zero_optimization"], args.deepspeed_config)
    if args.opt == "deepspeed":
        check_builds(args.opt)
    optimizer = make_optimizer(model)
    check_optimizer(optimizer, args.zero_stage)
    return DeepSpeedEngine(deepspeed, config, model, optimizer, encoder, world)


class DeepSpeedEngine:
    """Args:
    deepspeed: the package.
    config: what its `initialize` takes.
    model: trained in place. Its scalars become vectors of one element here, and only here:
        DeepSpeed cuts no scalar.
    optimizer: over the model's parameters; DeepSpeed puts its own tensors in their place.
    encoder: of the model.
    world: the processes; gradients are averaged over them.
    """

    def __init__(
        self,
        deepspeed: Any,
        config: dict[str, Any],
        model: Any,
        optimizer: torch.optim.Optimizer,
        encoder: Encoder,
        world: World,
    ) -> None:
        self.model, self.world = model, world
        self.stage: int = config["zero_optimization"]["stage"]
        self.name = f"deepspeed, ZeRO-{self.stage}"
        self._deepspeed, self._optimizer = deepspeed, optimizer
        self._half = next((kind for kind in HALVES if config[kind]["enabled"]), None)
        self._tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)
        self._wanted = {name: _described(tensor) for name, tensor in self._tensors.items()}
        self._names = {p: name for name, p in model.named_parameters()}
        self._positions = Positions(
            optimizer, self._names, {name: p.shape for p, name in self._names.items()}
        )
        self._scalars = [p for p in self._names if p.ndim == 0]
        before = host_copy({name: p for p, name in self._names.items() if self._must_keep(p)})
        self._engine = self._initialized(config, Towers(model, encoder))
        self._shards = Shards(self._engine, self._names, world)
        self._positions.shards = self._shards
        trained = self._shards.parameters
        self._frozen = {name: x for name, x in before.items() if name not in trained}
        self._in_graph: list[Tensor] = []  # scale and bias of the latest forward
        self._exact: dict[str, Tensor] = {}  # what half precision would round, 0-dim
        self._set_masters({name: x for name, x in before.items() if name in trained})

    def _must_keep(self, p: nn.Parameter) -> bool:
        """Whether DeepSpeed is about to round a weight, or to cut one that has no master."""
        return self._half is not None if p.requires_grad else self.world.is_main

    def _initialized(self, config: dict[str, Any], towers: nn.Module) -> Any:
        for p in self._scalars:
            p.data = p.data.view(1)
        # ZeRO-0 in half precision begins with a step of zero gradients: it must not decay weights,
        # nor count.
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
        engine, *_ = self._deepspeed.initialize(
            model=towers, optimizer=self._optimizer, config=config, dist_init_required=False
        )
        self._optimizer.state.clear()
        return engine

    def encode(self, batch: Batch, *, last: bool = True) -> Encoded:
        # By keyword: ZeRO-3 takes positional arguments apart to find tensors that need gradients.
        encoded: Encoded = self._engine(batch=batch)
        self._in_graph = [x for x in encoded[2:] if x is not None and x.requires_grad]
        return encoded if self._half is None else self._with_exact_scalars(encoded)

    def _with_exact_scalars(self, encoded: Encoded) -> Encoded:
        """With the masters' scale and bias, and gradients for the rounded ones: bfloat16's scale
        is off by up to 2 %."""
        scale, bias = encoded.logit_scale, encoded.logit_bias
        if _SCALE in self._exact:
            scale = scale * (self._exact[_SCALE].exp() / scale).detach()
        if bias is not None and _BIAS in self._exact:
            bias = bias + (self._exact[_BIAS] - bias).detach()
        return encoded._replace(logit_scale=scale, logit_bias=bias)

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        # ZeRO-2 and 3 add a gradient that a step's first backward lacks to that of the step before.
        loss = sum((0 * x for x in self._in_graph), loss)
        self._in_graph = []
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, lr: float) -> Stepped:
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        if self.stage == 0 and self._half is None:
            return self._step_of_whole_gradients()
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        taken = self._engine.was_step_applied()
        self._clamp_scale()
        # Overflows are how float16 finds its loss's scale; there is none to find below 1.
        searching = self._half == "fp16" and self._engine.optimizer.loss_scale > 1
        return Stepped(taken or searching, None if norm is None else float(norm))

    def _step_of_whole_gradients(self) -> Stepped:
        """ZeRO-0 in float32, where DeepSpeed lets any gradient pass and keeps no norm."""
        gradients = [p.grad for p in self._names if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if math.isfinite(norm):
            self._engine.step()
            self._clamp_scale()
        else:
            self.discard()
        return Stepped(math.isfinite(norm), norm)

    def discard(self) -> None:
        self._engine.zero_grad()
        if self.stage == 0:
            return
        optimizer = self._engine.optimizer
        optimizer.zero_grad(set_to_none=True)
        if self.stage == 3:
            optimizer._pre_step()
            optimizer._partition_all_parameters()
            optimizer._overflow_clean_up(optimizer.loss_scale)
            if persistent := optimizer.persistent_parameters:
                persistent[0].all_gather(persistent)
            return
        optimizer.micro_step_id = -1
        for kept in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
            kept.update(dict.fromkeys(kept))
        if optimizer.cpu_offload:
            optimizer.reset_cpu_buffers()

    @torch.no_grad()
    def _clamp_scale(self) -> None:
        """Clamped in the model alone, the scale would be back at the next step, from its master."""
        if _SCALE in self._shards.parameters:
            scale = self._shards.gathered(_SCALE, MASTER).item()
            if not 0 <= scale <= MAX_LOG_SCALE:
                self._shards.fill(_SCALE, min(max(scale, 0.0), MAX_LOG_SCALE))
        self._keep_exact()

    def _keep_exact(self) -> None:
        """Collective. Keeps what half precision rounds in the model."""
        if self._half is not None:
            scalars = {_SCALE, _BIAS} & self._shards.parameters.keys()
            self._exact = {n: self._shards.gathered(n, MASTER).view(()) for n in sorted(scalars)}

    @contextmanager
    def whole_model(self) -> Iterator[Any]:
        if self.world.group is not None:
            for buffer in self.model.buffers():  # of BatchNorm: the main rank's are what is saved
                dist.broadcast(buffer, 0, self.world.group)
        with ExitStack() as stack:
            if self.stage == 3:
                persistent = self._engine.optimizer.persistent_parameters
                stack.enter_context(gathered(self._deepspeed, self.model, persistent))
            stack.enter_context(as_scalars(self._scalars))
            yield self.model

    def checkpoint(self) -> dict[str, Any] | None:
        masters = {
            name: self._shards.gathered(name, MASTER).cpu() for name in self._shards.parameters
        }
        optimizer = self._positions.state_dict()
        if not self.world.is_main:
            return None
        weights = masters | self._frozen
        state_dict = {
            name: weights[self._names[tensor]].view(self._wanted[name].shape)
            if isinstance(tensor, nn.Parameter)
            else tensor
            for name, tensor in self._tensors.items()
        }
        checkpoint = {"state_dict": state_dict, "optimizer": optimizer}
        if self._half == "fp16":
            checkpoint["scaler"] = _as_torchs(self._engine.optimizer.loss_scaler)
        return checkpoint

    def load_checkpoint(self, checkpoint: dict[str, Any], where: str) -> None:
        fitting = fitted(checkpoint["state_dict"], self._wanted, where, resize=False)
        weights = {
            self._names[tensor]: fitting[name]
            for name, tensor in self._tensors.items()
            if isinstance(tensor, nn.Parameter)
        }
        if "optimizer" in checkpoint:
            positions: Any = self._positions  # as good as an optimizer
            load_optimizer_state(positions, checkpoint["optimizer"], where)
        self._set_masters(weights)
        self._set_frozen(weights)
        self._set_buffers(fitting)
        if "scaler" in checkpoint and self._half == "fp16":
            self._engine.optimizer.loss_scaler.cur_scale = checkpoint["scaler"]["scale"]

    def _set_masters(self, weights: Mapping[str, Tensor]) -> None:
        """Collective. Sets what of these trains; all ranks have the same."""
        for name, value in weights.items():
            self._shards.set(name, 0, {MASTER: value.reshape(-1)})
        self._shards.publish()
        self._keep_exact()

    @torch.no_grad()
    def _set_frozen(self, weights: Mapping[str, Tensor]) -> None:
        """Collective. Sets what of these is locked; all ranks have the same."""
        frozen = {name: p for p, name in self._names.items() if not p.requires_grad}
        if self.world.is_main:
            self._frozen = host_copy({name: weights[name] for name in frozen})
        with self._deepspeed.zero.GatheredParameters(list(frozen.values()), modifier_rank=0):
            for name, p in frozen.items():
                p.copy_(weights[name].view(p.shape))

    @torch.no_grad()
    def _set_buffers(self, values: Mapping[str, Tensor]) -> None:
        for name, buffer in self._buffers():
            buffer.copy_(values[name])

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        return ((n, x) for n, x in self._tensors.items() if not isinstance(x, nn.Parameter))

    def snapshot(self, folder: Path) -> Callable[[], None]:
        content = sharded_state(self._positions)
        content["buffers"] = host_copy(dict(self._buffers()))
        content["frozen"] = self._frozen
        content["loss_scaler"] = self._loss_scaler()
        return lambda: save_checkpoint(file_of(folder, self.world.rank), content)

    def restore(self, folder: Path, saved_world_size: int, where: str) -> None:
        load_sharded_state(self._positions, folder, saved_world_size, where)
        self._shards.publish()
        self._keep_exact()
        main = read_checkpoint(file_of(folder, 0))
        self._set_frozen(main["frozen"])
        same = saved_world_size == self.world.size
        own = read_checkpoint(file_of(folder, self.world.rank)) if same else main
        self._set_buffers(own["buffers"])
        for name, value in main["loss_scaler"].items():
            setattr(self._engine.optimizer.loss_scaler, name, value)

    def _loss_scaler(self) -> dict[str, float]:
        """What float16's has found so far."""
        if self._half != "fp16":
            return {}
        state = vars(self._engine.optimizer.loss_scaler)
        return {name: x for name, x in state.items() if type(x) in (int, float)}


def _described(tensor: Tensor) -> Tensor:
    """Its shape and, where it is a weight, float32."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype, device="meta")


def _as_torchs(scaler: Any) -> dict[str, Any]:
    """The state of a `torch.amp.GradScaler` that goes on where DeepSpeed's stands."""
    state = torch.amp.GradScaler("cpu").state_dict()
    return state | {"scale": float(scaler.cur_scale), "growth_interval": scaler.scale_window}
