"""Find code that runs outside a module's forward, such as hooks, and copy models without it.

Units cannot be followed through such code.
"""

import copy
import functools
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules import module as every
from torch.nn.utils.parametrize import is_parametrized

from pruning_lab.graph.refusals import untraceable

PLAIN_TENSORS = (torch.Tensor, nn.Parameter)
"""Tensors of any other type may run code of their own."""

RUNS = ("forward", "_conv_forward", "_call_impl")
"""Methods that run when a module defined by torch is called."""


def is_compiled(module: nn.Module) -> bool:
    """Return True for the wrapper that ``torch.compile`` puts around a module."""
    return _defined_in(type(module), "torch._dynamo.")


def as_torch_wrote_it(module: nn.Module) -> bool:
    """Return True if a module has no hook, no replaced method and no tensor subclass.

    A module defined by torch must also run torch's methods, not patched ones.
    """
    return next(_code_of(".", module), None) is None


def added_code(model: nn.Module) -> dict[str, str]:
    """Return module name -> reason, for modules with code that their class's forward lacks.

    Such code is a hook, a replaced forward or ``__call__``, or a tensor subclass. All modules that
    this code can reach are included. Code that concerns the whole model is under ''. What torch
    itself adds to compute a weight (a parametrization) does not count: it shows in the weight.
    """
    names = {
        id(thing): name
        for name, module in model.named_modules()
        for thing in (module, *module.parameters(recurse=False), *module.buffers(recurse=False))
    }
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        for code, what in _code_of(name, module):
            reason = f"its units meet {what}, which cannot be followed"
            reasons.setdefault(name, reason)
            for thing in _within_reach(code):
                for inner in thing.modules() if isinstance(thing, nn.Module) else [thing]:
                    if id(inner) in names:
                        reasons.setdefault(names[id(inner)], reason)
        for key, held in vars(module).items():
            refers = isinstance(held, types.FunctionType | weakref.ref)
            for thing in _within_reach(held) if refers else ():
                if (path := names.get(id(thing))) is not None:
                    what = f"'{path}', reached through {key} of '{name}' and not as a submodule"
                    reasons.setdefault(path, f"its units meet {what}, which cannot be followed")
    return reasons


def _code_of(name: str, module: nn.Module) -> Iterator[tuple[Any, str]]:
    """Yield code that runs outside the forward of the module's class, and its description."""
    for kind, hooks in (("pre-hook", module._forward_pre_hooks), ("hook", module._forward_hooks)):
        for hook in hooks.values():
            if not _defined_in(type(hook).__call__, "torch.nn.utils."):
                what = f"the forward {kind} {_named(hook)} of '{name}'"
                yield hook, f"{what} (handle.remove() removes it)"
    if not name:
        before_all, after_all = every._global_forward_pre_hooks, every._global_forward_hooks
        for hook in (*before_all.values(), *after_all.values()):
            yield hook, f"{_named(hook)}, a hook of all modules (handle.remove() removes it)"
        for key, code in vars(F).items():
            public = isinstance(code, types.FunctionType) and not key.startswith("_")
            if public and not _defined_in(code, "torch."):
                yield code, f"{_named(code)} in the place of torch.nn.functional.{key}"
    if is_compiled(module):
        return
    for key, code in vars(module).items():
        if key != "forward" and callable(code) and callable(getattr(type(module), key, None)):
            yield code, f"{_named(code)} in the place of {key} of '{name}'"
    forward = vars(module).get("forward")
    leaf = _defined_in(type(module), "torch.nn.", "torch.ao.nn.")
    if forward is not None:
        bound = getattr(forward, "__self__", None) is module and not leaf and name
        if not bound or any(thing is not module for thing in _within_reach(forward)):
            yield forward, f"{_named(forward)} in the place of the forward of '{name}'"
    elif leaf and not is_parametrized(module):
        for key in RUNS:
            code = getattr(type(module), key, None)
            if code is not None and not _defined_in(code, "torch."):
                kind = type(module).__name__
                yield code, f"{_named(code)} in the place of torch's {kind}.{key}"
    plain = isinstance(module, fx.GraphModule)  # its __call__ only reports errors
    calls = type(module).__call__, type(module)._call_impl
    if not (name or plain or calls == (nn.Module.__call__, nn.Module._call_impl)):
        yield None, f"{type(module).__name__}.__call__ (move its code into the forward)"
    for key, tensor in (module._parameters | module._buffers).items():
        if tensor is not None and type(tensor) not in PLAIN_TENSORS:
            yield None, f"the {key} of '{name}', a {type(tensor).__name__}"


def _defined_in(code: Any, *packages: str) -> bool:
    """Return True if a class or function was written in one of these packages."""
    written = getattr(code, "__module__", None)
    if isinstance(code, types.FunctionType):  # a wrapper has its target's __module__
        written = code.__globals__.get("__name__")
    return str(written).startswith(packages)


def _named(code: Any) -> str:
    plain = code.func if isinstance(code, functools.partial) else code
    return f"`{getattr(plain, '__name__', type(plain).__name__)}`"


def _within_reach(code: Any) -> list[Any]:
    """Return the modules and tensors that a function or object holds or refers to by name."""
    reached, seen, waiting = [], {id(code): code}, [code]
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, nn.Module | torch.Tensor):
            reached.append(thing)
            continue
        for item in _held_by(thing):
            if id(item) not in seen:
                seen[id(item)] = item  # held, so that no other object gets its id
                waiting.append(item)
    return reached


def _held_by(thing: Any) -> list[Any]:
    if isinstance(thing, types.ModuleType | type) or _defined_in(thing, "torch."):
        return []
    if isinstance(thing, Mapping):
        return list(thing.values())
    if isinstance(thing, list | tuple | set | frozenset):
        return list(thing)
    if isinstance(thing, weakref.ref):
        return [thing()]
    if isinstance(thing, types.MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, functools.partial):
        return [thing.func, thing.args, thing.keywords]
    held = list(getattr(thing, "__dict__", {}).values())
    if isinstance(thing, types.FunctionType):
        held += [thing.__defaults__, thing.__kwdefaults__]
        assigned = (cell for cell in thing.__closure__ or () if cell != types.CellType())
        held += [cell.cell_contents for cell in assigned]
        named = _names_in(thing.__code__) & thing.__globals__.keys()
        held += [thing.__globals__[name] for name in named]
    return held


def _names_in(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names_in, inner))


def tensors_at(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the tensors of a module and of all modules that its attributes refer to."""
    for thing in _within_reach(vars(module)):
        if isinstance(thing, torch.Tensor):
            yield thing
        else:
            yield from (*thing.parameters(), *thing.buffers())


def skeleton(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the meta device, without data and without code added to it.

    Raises UntraceableError for a model that cannot be copied.
    """
    tensors = (*model.parameters(), *model.buffers())
    memo: dict[int, Any] = {id(tensor): _empty(tensor) for tensor in tensors}
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                memo[id(value)] = value.detach().to("meta")
            if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
                memo[id(value)] = type(value)()
    try:
        bones = copy.deepcopy(model, memo)
    except Exception as error:  # attributes of the user's modules may refuse to be copied
        raise untraceable(model, f"it cannot be copied, {error}") from error
    for module in bones.modules():
        forward = vars(module).get("forward")
        if is_compiled(module):
            vars(module)["forward"] = module._orig_mod
        elif getattr(forward, "__self__", None) is not module:
            vars(module).pop("forward", None)
    return bones


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    """Return a parameter or buffer of the same shape, without data."""
    if type(tensor) in PLAIN_TENSORS:
        empty = tensor.detach().to("meta")
    else:
        with torch._C.DisableTorchFunction():
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, tensor.requires_grad)
    return empty
