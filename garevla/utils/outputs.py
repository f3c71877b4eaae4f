"""Results whose fields are found by attribute, by name and by position."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, overload

from torch import Tensor
from torch.utils import _pytree


class Output:
    """Base of dataclasses that go through other people's training loops.

    ``output.loss``, ``output["loss"]`` and ``output[0]`` are the same. By name and by position, as
    in transformers' ``ModelOutput``, fields that are None are passed over, and iteration is over
    names. DistributedDataParallel finds the tensors, also with ``static_graph=True``.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        _pytree.register_pytree_node(
            cls,
            lambda output: (list(_fields(output).values()), list(_fields(output))),
            lambda values, names: cls(**dict(zip(names, values, strict=True))),
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        )

    def keys(self) -> list[str]:
        """Names of the fields that are not None."""
        return [name for name, value in _fields(self).items() if value is not None]

    def values(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.keys()]

    def items(self) -> list[tuple[str, Tensor]]:
        return [(name, getattr(self, name)) for name in self.keys()]

    def get(self, name: str, default: Any = None) -> Any:
        return dict(self.items()).get(name, default)

    def to_tuple(self) -> tuple[Tensor, ...]:
        return tuple(self.values())

    @overload
    def __getitem__(self, key: str | int) -> Tensor: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Tensor, ...]: ...
    def __getitem__(self, key: str | int | slice) -> Tensor | tuple[Tensor, ...]:
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


def _fields(output: Any) -> dict[str, Any]:
    return {each.name: getattr(output, each.name) for each in dataclasses.fields(output)}
