"""Config fields that programs from before transformers 5 look for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Mixin = Any
else:
    _Mixin = object


def older_names(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a config.json under the names before transformers 5: `rope_theta`, `rope_scaling`, `torch_dtype`.

    Without them transformers 4.x would use a rope base of 10000, whatever the model was trained with.
    """
    older = {}
    rope = fields.get("rope_parameters") or {}
    if "rope_theta" in rope:
        older["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type") in ("linear", "dynamic"):  # the types that 4.x knows, with exactly these two fields
        older["rope_scaling"] = {"type": rope["rope_type"], "factor": rope["factor"]}
    if fields.get("dtype") is not None:
        older["torch_dtype"] = fields["dtype"]
    return older


class LegacyFields(_Mixin):
    """Config mixin: a saved config.json also has the names before transformers 5; see `older_names`."""

    def to_diff_dict(self) -> dict[str, Any]:
        fields = super().to_diff_dict()
        rope = getattr(self, "rope_parameters", None) or {}
        return fields | older_names({**fields, "rope_parameters": rope})
