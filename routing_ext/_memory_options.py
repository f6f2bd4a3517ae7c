"""What a memory network does differently if asked to, and what its step reads from the interface vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple

CHOICES = {
    "usage": ("reference", "paper", "package"),
    "allocation": ("sort", "softmax"),
    "strengths": ("softplus", "oneplus"),
    "words": ("tanh", "linear"),
    "cosine": ("reference", "plain"),
    "output": ("sigmoid", "linear"),
    "initial": ("reference", "zeros"),
}


def check_choice(op: str, name: str, value: Any) -> None:
    if value not in CHOICES[name]:
        *others, last = (f'"{choice}"' for choice in CHOICES[name])
        raise ValueError(f"{op}: {name} must be {', '.join(others)} or {last}, got {value!r}")


class DncOptions(NamedTuple):
    """The options of a DNC's step, which the operators take as keywords. The defaults are what pytorch-dnc does.

    The layer :class:`~routing_ext.memory.DNC` has the paper's instead.

    ``usage="paper", strengths="oneplus", words="linear"`` is the step of Graves et al. (2016);
    ``usage="package", cosine="plain"`` is that of the package ``dnc``.

    Attributes:
        usage: ``"reference"``: what a head is about to allocate counts as used by its write gate, for the heads after it and
            in the usage that is carried to the next step, and usage has a gradient to the write weights. ``"paper"``: it
            counts by write gate times allocation gate, for the heads after it only, and there is no such gradient (Graves et
            al., 2016, as in DeepMind's implementation). ``"package"``: likewise, but with that gradient.
        allocation: ``"sort"`` or ``"softmax"`` (Ben-Ari and Bekker, 2017), see :func:`routing_ext.reference.dnc_allocation`.
        temperature: of that softmax, positive.
        strengths: how strengths are made positive. ``"oneplus"``: ``1 + softplus`` (Graves et al., 2016).
        words: ``"tanh"``: keys and what is added to the memory are between -1 and 1. ``"linear"``: they are as the interface
            has them (Graves et al., 2016).
        cosine: ``"plain"``: ``k.m / (|k| |m| + 1e-6)``. ``"reference"``: see :func:`routing_ext.reference.content_weights`.
        mask_min: the least value, in [0, 1), of masks by which each head looks at its key and at the memory (Csordas and
            Schmidhuber, 2019, who found 0.1 best). None: there are no masks.
        erase_freed: what the free gates free is erased, too (de-allocation; Csordas and Schmidhuber, 2019).
        sharpen_link: reads along the link are sharpened, ``(d + 1e-6)^s / sum``, ``s = oneplus`` (the same).
        link: False: there is no link, and heads read by content only (Franke et al., 2018). `precedence` and `link` of the
            state are empty, ``[B,V,0]`` and ``[B,V,0,0]``.
    """

    usage: str = "reference"
    allocation: str = "sort"
    temperature: float = 0.5
    strengths: str = "softplus"
    words: str = "tanh"
    cosine: str = "reference"
    mask_min: float | None = None
    erase_freed: bool = False
    sharpen_link: bool = False
    link: bool = True

    @classmethod
    def read(cls, op: str, given: Mapping[str, Any]) -> DncOptions:
        """The options among keywords.

        Args:
            op: who was given them, for messages.
            given: keywords.

        Raises:
            TypeError: a keyword that is no option, or an option of another type.
            ValueError: an option has no such value.
        """
        for name in given:
            if name not in cls._fields:
                raise TypeError(f"{op}: options are {', '.join(cls._fields)}; got {name}")
        options = cls(**given)
        for name in ("erase_freed", "sharpen_link", "link"):
            if not isinstance(getattr(options, name), bool):
                raise TypeError(f"{op}: {name} must be True or False, got {getattr(options, name)!r}")
        for name in ("temperature", "mask_min"):
            if not isinstance(getattr(options, name), (int, float, NoneType)):
                raise TypeError(f"{op}: {name} must be a number, got {getattr(options, name)!r}")
        for name in ("usage", "allocation", "strengths", "words", "cosine"):
            check_choice(op, name, getattr(options, name))
        if options.allocation == "softmax" and options.temperature <= 0:
            raise ValueError(f"{op}: temperature must be positive, got {options.temperature}")
        if options.mask_min is not None and not 0 <= options.mask_min < 1:
            raise ValueError(f"{op}: mask_min must be in [0, 1), got {options.mask_min}")
        if options.sharpen_link and not options.link:
            raise ValueError(f"{op}: sharpen_link needs a link, got link=False")
        return options

    def interface(self, v: int, r: int, w: int) -> dict[str, int]:
        """The parts of the interface vector and how many elements each has, in their order.

        Args:
            v: write heads.
            r: read heads.
            w: elements of a location.
        """
        parts = {
            "write_keys": v * w, "write_strengths": v, "allocation_gates": v, "write_gates": v, "erase": v * w, "add": v * w,
            "read_keys": r * w, "read_strengths": r, "free_gates": r,
        }  # fmt: skip
        if self.link:
            parts["modes"] = r * (2 * v + 1)
        if self.mask_min is not None:
            parts |= {"write_masks": v * w, "read_masks": r * w}
        if self.sharpen_link:
            parts["sharpness"] = r * 2 * v
        return parts


def numbers(
    options: DncOptions | None = None,
    *,
    output: str = "sigmoid",
    initial: str = "reference",
    norm_eps: float | None = None,
) -> list[float]:
    """The options as the raw operators want them: in the order of csrc/math/memory_interface.h, none if nothing differs.

    Args:
        options: of the step.
        output: of a sequence: ``"sigmoid"``, or ``"linear"`` for what the output layer gives.
        initial: of a sequence: its first state, ``"reference"``, or ``"zeros"``.
        norm_eps: of a sequence: of the normalisation of its interface; None: it has none.
    """
    o = options or DncOptions()
    if o == DncOptions() and (output, initial, norm_eps) == ("sigmoid", "reference", None):
        return []
    return [
        CHOICES["usage"].index(o.usage),
        o.temperature if o.allocation == "softmax" else 0,
        o.strengths == "oneplus",
        o.words == "linear",
        o.cosine == "plain",
        -1 if o.mask_min is None else o.mask_min,
        o.erase_freed,
        o.sharpen_link,
        not o.link,
        output == "linear",
        initial == "zeros",
        -1 if norm_eps is None else norm_eps,
    ]


def is_linked(model: str, options: Sequence[float]) -> bool:
    """Whether that is a DNC with a link; `options` as :func:`numbers` gives them."""
    return model == "dnc" and not (options and options[8])


def is_normalised(options: Sequence[float]) -> bool:
    """Whether the interface of a sequence is; `options` as :func:`numbers` gives them."""
    return len(options) > 0 and options[11] >= 0


def num_parts(model: str, options: Sequence[float]) -> int:
    """Of the interface; `options` as :func:`numbers` gives them."""
    if model == "ntm":
        return 12
    return 10 if not options else 10 - (options[8] != 0) + 2 * (options[5] >= 0) + (options[7] != 0)
