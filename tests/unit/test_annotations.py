"""Annotations of the public API can be resolved at run time, for FastAPI, cattrs and svcs."""

import inspect
import typing

import attrs
import pytest

import qamera_async
from qamera_async import events

CLASSES = [
    value
    for module in (qamera_async, events)
    for value in vars(module).values()
    if inspect.isclass(value) and value.__module__.startswith("qamera_async")
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__qualname__)
def test_annotations_of_public_classes_can_be_resolved(cls):
    if attrs.has(cls):
        attrs.resolve_types(cls)
    for name, member in vars(cls).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function) and (not name.startswith("_") or name == "__init__"):
            typing.get_type_hints(function)
