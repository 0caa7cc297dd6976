"""Config fields that programs from before transformers 5 look for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Mixin = Any
else:
    _Mixin = object


class LegacyFields(_Mixin):
    """Config mixin: a saved config.json also carries `rope_theta`, `rope_scaling` and `torch_dtype`.

    transformers 5 writes `rope_parameters` and `dtype` instead; without the old names a reader of the 4.x kind would
    take a rope base of 10000 whatever the model was trained with.
    """

    def to_diff_dict(self) -> dict[str, Any]:
        fields = super().to_diff_dict()
        rope = getattr(self, "rope_parameters", None) or {}
        if "rope_theta" in rope:
            fields["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type") in ("linear", "dynamic"):  # the kinds 4.x knew, with exactly these two fields
            fields["rope_scaling"] = {"type": rope["rope_type"], "factor": rope["factor"]}
        if fields.get("dtype") is not None:
            fields["torch_dtype"] = fields["dtype"]
        return fields
