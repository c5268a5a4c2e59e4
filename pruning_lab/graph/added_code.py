"""Code that runs with a module beside the forward of its class: nobody follows units through it."""

import functools
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils.parametrize import is_parametrized

PLAIN_TENSORS = (torch.Tensor, nn.Parameter)
"""Any other type may compute whatever it likes."""


RUNS = ("forward", "_conv_forward", "_call_impl")
"""Methods that run when a module defined by torch is called."""


def is_compiled(module: nn.Module) -> bool:
    """Return True for the wrapper that ``torch.compile`` puts around a module."""
    return _defined_in(type(module), "torch._dynamo.")


def as_torch_wrote_it(module: nn.Module) -> bool:
    """Whether nothing runs with a module of torch's own beside what torch wrote.

    Of other modules: no hook, and nothing in the place of a method.
    """
    return next(_code_of(".", module), None) is None


def added_code(model: nn.Module) -> dict[str, str]:
    """For each module that runs code which its class's forward does not show, what that is.

    Hooks, a forward or ``__call__`` put in the place of another, tensors of a type of their own;
    with each module those that its code can get at. Code that concerns the model as a whole is
    under ''. What torch itself adds to compute a weight is not counted: it shows in the weight.
    """
    names = {id(module): name for name, module in model.named_modules()}
    owners = {
        id(tensor): name
        for name, module in model.named_modules()
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    }
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        for code, what in _code_of(name, module):
            reason = f"its units meet {what}, which cannot be followed"
            found.setdefault(name, reason)
            for thing in _within_reach(code):
                inside = thing.modules() if isinstance(thing, nn.Module) else [thing]
                for each in map(id, inside):
                    if each in names or each in owners:
                        found.setdefault(names.get(each, owners.get(each, "")), reason)
        for key, held in vars(module).items():
            if not isinstance(held, types.FunctionType | weakref.ref):
                continue
            inside = [names.get(id(each), owners.get(id(each))) for each in _within_reach(held)]
            for path in (path for path in inside if path is not None):
                what = f"'{path}', which {key} of '{name}' refers to past the model"
                found.setdefault(path, f"its units meet {what}, which cannot be followed")
    return found


def _code_of(name: str, module: nn.Module) -> Iterator[tuple[Any, str]]:
    """What runs beside the forward of the module's class, and what to say of it."""
    for before, hooks in ((True, module._forward_pre_hooks), (False, module._forward_hooks)):
        for hook in hooks.values():
            if not _defined_in(type(hook).__call__, "torch.nn.utils."):
                kind = "pre-hook" if before else "hook"
                what = f"the forward {kind} {_named(hook)} of '{name}'"
                yield hook, f"{what} (handle.remove() takes it away)"
    if not name:
        for hook in _hooks_of_all_modules():
            yield hook, f"{_named(hook)}, a hook of all modules (handle.remove() takes it away)"
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
        own = getattr(forward, "__self__", None) is module and not leaf and name
        if not own or any(each is not module for each in _within_reach(forward)):
            yield forward, f"{_named(forward)} in the place of the forward of '{name}'"
    elif leaf and not is_parametrized(module):
        for key in RUNS:
            code = getattr(type(module), key, None)
            if code is not None and not _defined_in(code, "torch."):
                kind = type(module).__name__
                yield code, f"{_named(code)} in the place of torch's {kind}.{key}"
    plain = isinstance(module, fx.GraphModule)  # its own does no more than report errors
    own_call = type(module).__call__, type(module)._call_impl
    if not (name or plain or own_call == (nn.Module.__call__, nn.Module._call_impl)):
        yield None, f"{type(module).__name__}.__call__ (move what it does into the forward)"
    for key, tensor in (module._parameters | module._buffers).items():
        if tensor is not None and type(tensor) not in PLAIN_TENSORS:
            yield None, f"the {key} of '{name}', a {type(tensor).__name__}"


def _hooks_of_all_modules() -> list[Any]:
    return [
        *torch_module._global_forward_pre_hooks.values(),
        *torch_module._global_forward_hooks.values(),
    ]


def _defined_in(code: Any, *packages: str) -> bool:
    """Whether a class or function was written in one of these packages, whatever it is called."""
    written = getattr(code, "__module__", None)
    if isinstance(code, types.FunctionType):  # a wrapper takes the name of what it wraps
        written = code.__globals__.get("__name__")
    return str(written).startswith(packages)


def _named(code: Any) -> str:
    plain = code.func if isinstance(code, functools.partial) else code
    return f"`{getattr(plain, '__name__', type(plain).__name__)}`"


def tensors_at(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the tensors of a module and of all modules that its attributes refer to."""
    for thing in _within_reach(vars(module)):
        if isinstance(thing, torch.Tensor):
            yield thing
        else:
            yield from (*thing.parameters(), *thing.buffers())


def _within_reach(code: Any) -> list[Any]:
    """The modules and tensors that a function or an object holds, or names."""
    found, seen, waiting = [], {id(code): code}, [code]
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, nn.Module | torch.Tensor):
            found.append(thing)
            continue
        for part in _held_by(thing):
            if id(part) not in seen:
                seen[id(part)] = part  # held, so that no other object gets its id
                waiting.append(part)
    return found


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
        held += [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
        named = _names_in(thing.__code__) & thing.__globals__.keys()
        held += [thing.__globals__[name] for name in named]
    return held


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not assigned yet
        return False


def _names_in(code: types.CodeType) -> set[str]:
    inner = (each for each in code.co_consts if isinstance(each, types.CodeType))
    return set(code.co_names).union(*map(_names_in, inner))
