"""Recipes say, as data, what is done to a policy to make it smaller and faster.

A recipe names a token selector or an accelerator, a quantisation scheme, or both. The shipped ones are the YAML files
of `config/recipes`; a path to a file of the same form works wherever a name does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sqap_vla_ros.compression.recipe_sections.errors import RecipeError, errors_name, require_one_of
from sqap_vla_ros.compression.recipe_sections.row_bits import RowBits, require_no_contradiction, rows_from_dict
from sqap_vla_ros.compression.schemes.equalization import EQUALIZATIONS, Equalization
from sqap_vla_ros.compression.schemes.execution import EXECUTIONS
from sqap_vla_ros.compression.schemes.rotation import ROTATIONS, Rotation
from sqap_vla_ros.compression.schemes.rounding import ROUNDINGS, Rounding
from sqap_vla_ros.field_types import build
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.checkpoints.foreign import kind_of
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.yaml_files import merged, read_yaml

DTYPES = ("float32", "bfloat16")
FORMER_SELECTORS = ("efficient_vla", "tome", "vla_cache")  # accelerators that recipes used to name as selectors
WEIGHT_BITS = (2, 3, 4, 8)
PART_BITS, PART_ACTIVATION_BITS = (4, 8), 8  # of the linears beside the decoder
HESSIANS = ("plain", "weighted")


@dataclass(frozen=True)
class PruningSpec:
    """A token selector by name, and its parameters (see `pruning.make_selector`)."""

    ALWAYS_STORED: ClassVar = ("selector", "parameters")

    selector: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AcceleratorSpec:
    """An accelerator by name, and its parameters (see `accelerators.table.make_accelerator`)."""

    ALWAYS_STORED: ClassVar = ("name", "parameters")

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantizationSpec:
    """The way linears are stored and multiplied: the decoder's, and those of the parts beside it that are named.

    weight_bits, activation_bits: 16 activation bits mean weight-only; 3 weight bits are stored as 4.
    weight_group: input channels that share a weight scale; 0 is one scale per output row, the only choice whose
        scale can leave an integer product.
    weight_symmetric: asymmetric weights carry a zero point (weight-only schemes).
    weight_clip: search the clipping of every row's range for the least squared error.
    rounding: `nearest`, or `gptq` (error feedback on the calibration inputs).
    rotation: `hadamard` (norms folded, residual and per-head rotations folded into the weights, online rotations before
        o_proj and down_proj), `query_key` (the SQAP paper's: online before q, k, v only), or `none`.
    equalization: `smoothquant`, `awq`, `omniquant` or `none`: per-channel scales moved between neighbouring layers.
    smooth_alpha: SmoothQuant's migration strength.
    activation_granularity: one scale per token, or one for the whole tensor; both dynamic.
    activation_clip: quantised range over the largest magnitude; None searches it per layer on the calibration inputs.
    text_activation_bits: of the tokens behind the image (instruction and cognition token), a tenth of all and what the
        action comes from; None: `activation_bits` like the image's.
    overrides: linear name (`down_proj`, ...) -> {weight_bits, activation_bits} for that one.
    row_bits: widths by row in place of `weight_bits`, which then keeps its default.
    hessian: `plain`, or `weighted` for GPTQ on inputs weighted by the squared gradient of the action there. The last
        layer then is fitted to the cognition token alone, which is all that it computes beside keys and values; `plain`
        fits it to every token.
    parts: `vision`, `projector` or `action_head` -> bits of its weights, 4 or 8, rounded to nearest; its activations
        take 8 bits. The parts that are not named keep 16.
    """

    ALWAYS_STORED: ClassVar = (
        "weight_bits",
        "activation_bits",
        "weight_group",
        "weight_symmetric",
        "weight_clip",
        "rounding",
        "rotation",
        "equalization",
        "smooth_alpha",
        "activation_granularity",
        "activation_clip",
        "overrides",
    )

    weight_bits: int = 4
    activation_bits: int = 4
    weight_group: int = 0
    weight_symmetric: bool = True
    weight_clip: bool = False
    rounding: str = "nearest"
    rotation: str = "none"
    equalization: str = "none"
    smooth_alpha: float = 0.5
    activation_granularity: str = "token"
    activation_clip: float | None = 1.0
    text_activation_bits: int | None = None
    overrides: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    row_bits: RowBits | None = None
    hessian: str = "plain"
    parts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        owner = "quantization"
        require_one_of(owner, "hessian", self.hessian, HESSIANS)
        if self.hessian == "weighted" and not self.rounding_scheme.needs_hessian:
            raise RecipeError(f"{owner}.hessian: weighted needs rounding: gptq, got {self.rounding!r}")
        if self.looks_at_the_action and self.equalization != "none":
            raise RecipeError(
                f"{owner}: row_bits and hessian: weighted cannot be combined with equalization {self.equalization!r}, "
                "which changes the weights after they were scored; leave it out"
            )
        if self.row_bits is not None and (self.weight_group or not self.weight_symmetric):
            raise RecipeError(f"{owner}.row_bits needs symmetric weights with one scale a row: leave weight_group out")
        for part, bits in self.parts.items():
            require_one_of(owner, "parts", part, COGACT.parts)
            require_one_of(f"{owner}.parts", part, bits, PART_BITS)
        if self.vision_by_row and "vision" in self.parts:
            raise RecipeError(
                f"{owner}: row_bits.vision and parts.vision both say how the towers are quantised; keep one"
            )
        require_one_of(owner, "weight_bits", self.weight_bits, WEIGHT_BITS)
        require_one_of(owner, "activation_bits", self.activation_bits, EXECUTIONS)
        require_one_of(owner, "rounding", self.rounding, ROUNDINGS)
        require_one_of(owner, "rotation", self.rotation, ROTATIONS)
        require_one_of(owner, "equalization", self.equalization, EQUALIZATIONS)
        require_one_of(owner, "activation_granularity", self.activation_granularity, ("token", "tensor"))
        if self.weight_group < 0:
            raise RecipeError(f"{owner}.weight_group must be 0 (per row) or a positive size, got {self.weight_group}")
        if self.quantizes_activations and (self.weight_group or not self.weight_symmetric):
            raise RecipeError(
                f"{owner}: weight_group={self.weight_group} and weight_symmetric={self.weight_symmetric} cannot leave "
                f"an integer product; use them with activation_bits: 16, or per-row symmetric weights"
            )
        if not 0.0 <= self.smooth_alpha <= 1.0:
            raise RecipeError(f"{owner}.smooth_alpha must be within 0..1, got {self.smooth_alpha}")
        if self.activation_clip is not None and not 0.1 <= self.activation_clip <= 1.0:
            raise RecipeError(f"{owner}.activation_clip must be within 0.1..1 or null, got {self.activation_clip}")
        if self.rotation != "none" and self.equalization != "none":
            raise RecipeError(
                f"{owner}: rotation {self.rotation!r} and equalization {self.equalization!r} move the same outliers; "
                "choose one"
            )
        if self.text_activation_bits is not None:
            require_one_of(owner, "text_activation_bits", self.text_activation_bits, (4, 8))
            if not self.quantizes_activations:
                raise RecipeError(f"{owner}.text_activation_bits needs quantised activations; activation_bits is 16")
        for linear, widths in self.overrides.items():
            require_one_of(owner, "overrides", linear, COGACT.linears)
            if unknown := set(widths) - {"weight_bits", "activation_bits"}:
                raise RecipeError(f"{owner}.overrides.{linear}: unknown {', '.join(sorted(unknown))}")
            require_one_of(f"{owner}.overrides.{linear}", "weight_bits", widths.get("weight_bits", 4), WEIGHT_BITS)
            require_one_of(
                f"{owner}.overrides.{linear}", "activation_bits", widths.get("activation_bits", 4), EXECUTIONS
            )

    def require_no_contradiction(self) -> None:
        """Raise `RecipeError` for keys that `row_bits` would silently pass over."""
        if self.row_bits is not None:
            require_no_contradiction(self.row_bits, self.weight_bits, QuantizationSpec.weight_bits, self.overrides)

    def bits(self, linear: str) -> tuple[int, int]:
        """Return the (weight, activation) bits of a linear of the decoder layer."""
        widths = self.overrides.get(linear, {})
        return widths.get("weight_bits", self.weight_bits), widths.get("activation_bits", self.activation_bits)

    @property
    def needs_calibration(self) -> bool:
        """Return whether the scheme looks at observations."""
        looks = self.rounding_scheme.needs_calibration or self.equalization_scheme.needs_calibration
        return looks or self.activation_clip is None or self.looks_at_the_action

    @property
    def looks_at_the_action(self) -> bool:
        """Return whether the policy's action decides about widths or rounding."""
        return self.row_bits is not None or self.hessian == "weighted"

    @property
    def vision_by_row(self) -> bool:
        """Return whether the rows of the vision towers take widths."""
        return self.row_bits is not None and self.row_bits.vision is not None

    @property
    def part_bits(self) -> Mapping[str, float]:
        """Return the bits a weight of every part beside the decoder that is quantised."""
        vision = None if self.row_bits is None else self.row_bits.vision
        return self.parts if vision is None else {"vision": vision, **self.parts}

    def mean_weight_bits(self, linear: str) -> float:
        """Return the width of a linear's weights, on average where rows differ."""
        return self.bits(linear)[0] if self.row_bits is None else self.row_bits.average

    @property
    def needs_hessian(self) -> bool:
        """Return whether rounding uses the second moment of the inputs, where there are observations."""
        looks = self.rounding_scheme.needs_hessian or self.equalization_scheme.needs_hessian
        return looks or self.weight_clip

    @property
    def quantizes_activations(self) -> bool:
        """Return whether `activation_bits` leaves integers to multiply, overrides aside."""
        return EXECUTIONS[self.activation_bits].quantizes_activations

    @property
    def rotation_scheme(self) -> Rotation:
        return ROTATIONS[self.rotation]

    @property
    def equalization_scheme(self) -> Equalization:
        return EQUALIZATIONS[self.equalization]

    @property
    def rounding_scheme(self) -> Rounding:
        return ROUNDINGS[self.rounding]


@dataclass(frozen=True)
class Recipe:
    """Everything that is done to a policy.

    dtype: of the towers, projector and unquantised decoder parts. head_dtype: of the action head's network; the chunk
    itself is refined in float32.
    """

    ALWAYS_STORED: ClassVar = ("name", "description", "dtype", "head_dtype", "pruning", "quantization")

    name: str
    description: str = ""
    dtype: str = "float32"
    head_dtype: str = "float32"
    pruning: PruningSpec | None = None
    quantization: QuantizationSpec | None = None
    accelerator: AcceleratorSpec | None = None

    def __post_init__(self) -> None:
        if self.pruning is not None and self.accelerator is not None:
            raise RecipeError(
                f"recipe {self.name!r}: accelerator {self.accelerator.name!r} brings its own choice of tokens, so it "
                f"cannot be combined with the selector {self.pruning.selector!r}; leave one of them out"
            )
        require_one_of(f"recipe {self.name!r}", "dtype", self.dtype, DTYPES)
        require_one_of(f"recipe {self.name!r}", "head_dtype", self.head_dtype, DTYPES)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe in plain containers, as stored in a compressed file.

        The fields in `ALWAYS_STORED` are always there, and the others only where they differ from their defaults. So a
        field that is added, with a default, changes neither the digests of recipes nor the files that hold them. Never
        add a name to those tuples.
        """
        content = dataclasses.asdict(self)
        _leave_out_defaults(self, content)
        return content

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Make a recipe from plain containers. Raises `RecipeError` for what it does not know."""
        data = dict(data)
        name = str(data.get("name", "?"))
        for section, kind in _SECTIONS.items():
            if data.get(section) is not None:
                data[section] = _section(name, section, kind, data[section])
        pruning = data.get("pruning")
        if pruning is not None and pruning.selector in FORMER_SELECTORS:
            data |= {"pruning": None, "accelerator": AcceleratorSpec(pruning.selector, pruning.parameters)}
        return build(cls, f"recipe {name!r}", data, RecipeError)

    @property
    def in_words(self) -> str:
        """Return its name, and its description where it has one."""
        return f"{self.name}: {self.description}" if self.description else self.name

    @property
    def digest(self) -> str:
        """Return the sha256 of what the recipe does to the numbers; its name and description do not count."""
        content = {k: v for k, v in self.to_dict().items() if k not in ("name", "description")}
        if self.accelerator is not None:  # it used to be named as a selector, and the digests are as old as that
            content["pruning"] = {"selector": self.accelerator.name, "parameters": self.accelerator.parameters}
            del content["accelerator"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


_SECTIONS = {"pruning": PruningSpec, "quantization": QuantizationSpec, "accelerator": AcceleratorSpec}


def _section(recipe: str, section: str, kind: type[Any], content: Any) -> Any:
    """Make a section of a recipe; errors name the recipe."""
    owner = f"recipe {recipe!r}, {section}"
    with errors_name(recipe):
        if isinstance(content, Mapping) and content.get("row_bits") is not None:
            content = {**content, "row_bits": rows_from_dict(f"{owner}.row_bits", content["row_bits"])}
        return build(kind, owner, content, RecipeError)


def _leave_out_defaults(spec: Any, content: dict[str, Any]) -> None:
    """Take out of `content`, the dict of a dataclass, what is not `ALWAYS_STORED` and has its default."""
    for each in dataclasses.fields(spec):
        value = getattr(spec, each.name)
        default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        if each.name not in spec.ALWAYS_STORED and value == default:
            del content[each.name]
        elif dataclasses.is_dataclass(value):
            _leave_out_defaults(value, content[each.name])


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in share_path("config/recipes").glob("*.yaml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Return a shipped recipe by name, or one from a YAML file (anything that ends in .yaml or .yml).

    A file may begin with `extends: w4a4`, a shipped recipe or a file relative to its own folder, and say only what it
    adds: a section replaces the parent's, `null` takes it away, and `quantization` is merged key by key. The
    description is not inherited. Raises `RecipeError` for what cannot be read or makes no sense.
    """
    path = _recipe_path(name_or_path, Path())
    recipe = Recipe.from_dict({"name": path.stem, **_resolve(path, ())})
    if recipe.quantization is not None:
        with errors_name(recipe.name):
            recipe.quantization.require_no_contradiction()
    return recipe


def _recipe_path(name_or_path: str | Path, folder: Path) -> Path:
    """Find a recipe's file; relative paths start at `folder`. Raises `RecipeError` where there is none."""
    if not str(name_or_path).strip():
        raise RecipeError(f"the recipe's name is empty; there are: {', '.join(list_recipes())}")
    path = Path(name_or_path).expanduser()
    if path.suffix in (".yaml", ".yml"):
        path = folder / path
        if not path.is_file():
            fault = f"is {kind_of(path)} and no file" if path.exists() else "does not exist"
            raise RecipeError(f"recipe file {path} {fault}")
        return path
    there, path = folder / path, share_path("config/recipes") / f"{name_or_path}.yaml"
    if not path.is_file():
        if there.exists():
            raise RecipeError(f"recipe {there} is {kind_of(there)}: give a recipe's name, or a file that ends in .yaml")
        raise RecipeError(f"no recipe named {str(name_or_path)!r}; there are: {', '.join(list_recipes())}")
    return path


def _resolve(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    """Read a recipe file and join it with its parents. extended_by: the files that led here, the first first."""
    chain = (*extended_by, path)
    if path.resolve() in [one.resolve() for one in extended_by]:
        raise RecipeError(f"recipe {chain[0].stem!r} extends itself: {' -> '.join(one.stem for one in chain)}")
    try:
        data = read_yaml(path)
    except ValueError as error:
        raise RecipeError(f"recipe file {error}") from error
    if not isinstance(data, Mapping):
        raise RecipeError(f"recipe file {path} must hold a mapping, got {repr(data)[:60]}")
    own = dict(data)
    if "extends" not in own:
        return own
    name = own.pop("extends")
    if not isinstance(name, str):
        got = repr(name)[:60]
        raise RecipeError(f"recipe {path.stem!r}: extends must be the name or the file of a recipe, got {got}")
    try:
        parent = _recipe_path(name, path.parent)
    except RecipeError as error:
        raise RecipeError(f"recipe {path.stem!r} extends {name!r}: {error}") from error
    content = {key: value for key, value in _resolve(parent, chain).items() if key not in ("name", "description")}
    both = [spec for spec in (content.get("quantization"), own.get("quantization")) if isinstance(spec, Mapping)]
    return content | own | ({"quantization": merged(*both)} if len(both) == 2 else {})
