"""Networks that a state dict holds once, however many modules hold them."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn


class SavedOnce(nn.Module):
    """A module that is saved under the first of its names, the one that ``named_parameters`` gives.

    Elsewhere in the same model, say as an attribute of its own and in a loss, it is left out, and
    not missed on loading. Files with all names load, too.
    """

    def state_dict(
        self, *arguments: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> Any:
        if destination is not None:
            saved = _SAVED_IN.get(self)
            if saved is not None and saved() is destination:
                return destination
            _SAVED_IN[self] = weakref.ref(destination)
        return super().state_dict(
            *arguments, destination=destination, prefix=prefix, keep_vars=keep_vars
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *others: Any,
    ) -> None:
        present = any(name.startswith(prefix) for name in state_dict)
        # All modules of a call of load_state_dict share one list of missing names.
        if not present and _LOADED_FROM.get(self) is missing_keys:
            # The parts of this module, which come next, are given what they have.
            state_dict.update(super().state_dict(prefix=prefix, keep_vars=True))
        elif present:
            _LOADED_FROM[self] = missing_keys
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, *others
        )


# Not attributes: a module is copied and pickled.
_SAVED_IN: weakref.WeakKeyDictionary[SavedOnce, weakref.ref[Any]] = weakref.WeakKeyDictionary()
_LOADED_FROM: weakref.WeakKeyDictionary[SavedOnce, list[str]] = weakref.WeakKeyDictionary()
