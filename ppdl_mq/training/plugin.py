"""Callables by name: `module:callable` with keyword arguments, from the manifest (models) or peer.toml (data).

A manifest is written by others, so `check_allowed` comes first where a peer builds its model.

Source: docs/TRAINING.md, "Models".
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from ppdl_mq.config import manifest
from ppdl_mq.errors import DataError, ModelError, PpdlError
from ppdl_mq.training import determinism

Failure = type[ModelError] | type[DataError]


def check_allowed(name: str, allowed: Collection[str]) -> None:
    """Refuse a model that this organisation has not allowed, before anything of it is imported.

    Args:
        name: `module:callable`, from a manifest.
        allowed: `module` for every callable defined in exactly that module, `module:callable` for that one.

    Raises:
        ModelError: it is not allowed, or cannot be found.
    """
    hint = "Add it to models in peer.toml if this organisation trusts it."
    module_name, _, attribute = name.partition(":")
    if not attribute.isidentifier():  # a dot would lead out of the module, to whatever it has imported
        raise ModelError(
            f"The manifest's model {name} is not of the form module:callable.", hint="The callable's name has no dots."
        )
    if name in allowed:
        return
    if module_name not in allowed:
        raise ModelError(f"The manifest's model {name} is not one that this organisation allows.", hint=hint)
    if getattr(find(name, ModelError), "__module__", None) != module_name:
        raise ModelError(f"The manifest's model {name} is not defined in {module_name} itself.", hint=hint)


def find(name: str, failure: Failure) -> Callable[..., Any]:
    """Import what `module:callable` names, with importlib and nothing else.

    Args:
        name: two dotted identifiers joined by a colon.
        failure: which error to raise.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not all(part.isidentifier() for part in f"{module_name}.{attribute}".split(".")):
        raise failure(f"{name!r} is not of the form module:callable.", hint="For example ppdl_mq.training.models:mlp.")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise failure(
                f"The module {module_name} is not installed here ({error.name} is missing).",
                hint="Install it in this peer's environment, or correct the name.",
            ) from error
        raise failure(
            f"The module {module_name} needs {error.name}, which is not installed.", hint="Install it."
        ) from error
    except (Exception, SystemExit) as error:  # a script that calls sys.exit(0) must not look like a trial that ended
        raise failure(
            f"The module {module_name} cannot be imported: {type(error).__name__}.", hint="--debug shows where."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, [each for each in dir(found) if each[0] != "_"], n=1)
            hint = f"Did you mean {near[0]}?" if near else "Correct the name."
            raise failure(f"The module {module_name} has no {attribute}.", hint=hint)
        found = getattr(found, part)
    if not callable(found):
        raise failure(f"{name} cannot be called.", hint="Name a function or a class.")
    return typing.cast("Callable[..., Any]", found)


def call(name: str, function: Callable[..., Any], arguments: Mapping[str, Any], failure: Failure) -> Any:
    """Call a plug-in with keyword arguments, and say which one is wrong.

    Args:
        name: for messages.
        function: what to call.
        arguments: its keyword arguments.
        failure: which error to raise.
    """
    _check_arguments(name, function, arguments, failure)
    try:
        return function(**arguments)
    except PpdlError:
        raise
    except OSError as error:
        raise failure(f"{name} cannot read {error.filename}: {error.strerror}.", hint="Check the path.") from error
    except (Exception, SystemExit) as error:
        # Not the exception's text: it may quote a cell of somebody's data.
        raise failure(
            f"{name} failed with {type(error).__name__}.", hint="Check its arguments; --debug shows where."
        ) from error


def build_model(model: manifest.Model, training: manifest.Training) -> torch.nn.Module:
    """Build the manifest's model on the CPU from the manifest's seed.

    Raises:
        ModelError: it cannot be found, may not be called, or cannot be built.
    """
    determinism.apply(training.threads)
    function = find(model.callable, ModelError)
    if not _declares_module(function):
        # A second line behind `check_allowed`: an allowed module may define more than models.
        raise ModelError(
            f"{model.callable} does not declare that it returns a model, and is not called.",
            hint="Name a subclass of torch.nn.Module, or a function annotated `-> torch.nn.Module`.",
        )
    cpu = torch.device("cpu")
    with determinism.seeded(training.seed, cpu), cpu:
        built = call(model.callable, function, model.arguments, ModelError)
    if not isinstance(built, torch.nn.Module):
        raise ModelError(f"{model.callable} returned no torch.nn.Module.", hint="Correct the plug-in.")
    return built


def _declares_module(function: Callable[..., Any]) -> bool:
    """Say whether a callable is a module class, or is annotated to return a module."""
    declared: Any = function
    if not inspect.isclass(function):
        try:
            declared = typing.get_type_hints(function).get("return")
        except (NameError, TypeError, AttributeError):  # annotations that do not resolve at run time
            return False
    return inspect.isclass(declared) and issubclass(declared, torch.nn.Module)


def _check_arguments(name: str, function: Callable[..., Any], arguments: Mapping[str, Any], failure: Failure) -> None:
    """Compare the argument names with the signature, so that a TypeError from within is not mistaken for it."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in classes have no signature; the call itself will tell
        return
    known = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    if not any(each.kind is each.VAR_KEYWORD for each in parameters):
        for given in arguments:
            if given not in known:
                near = difflib.get_close_matches(given, known, n=1)
                hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(known) or 'none'}."
                raise failure(f"{name} takes no argument {given!r}.", hint=hint)
    for each in parameters:
        if each.name in known and each.default is each.empty and each.name not in arguments:
            raise failure(f"{name} needs the argument {each.name!r}.", hint="Add it to the arguments.")
