"""Plan files: YAML of our own keys, or mergekit's for the methods that both have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from reproalign.common.errors import UserError, choose
from reproalign.common.merging.values import Cases, Gradient, Setting

TOP = {"merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source"}
_TASK = {"weight", "normalize", "lambda", "int8_mask"}  # int8_mask saves memory there and changes no number
PARAMETERS = {
    "linear": {"weight", "normalize"},
    "slerp": {"t"},
    "task_arithmetic": _TASK,
    "ties": _TASK | {"density"},
    "dare_linear": _TASK | {"density", "rescale"},
    "dare_ties": _TASK | {"density", "rescale"},
}
OF_A_MODEL = {"weight", "density"}
# What mergekit takes where nothing is said.
DEFAULTS = {"weight": 1.0, "density": 1.0, "lambda": 1.0}
NORMALIZE = {"linear": True, "ties": True, "task_arithmetic": False, "dare_linear": False, "dare_ties": False}


def read_plan(path: Path) -> tuple[dict[str, Any], int | None]:
    """Read a plan file.

    Returns:
        The keys of :class:`~.config.MergeConfig` that it sets, and the number of layers that its slices hold, if it has
        slices: a model with more would be cut.

    Raises:
        UserError: if the file is no plan, or asks for what this package does not do; the sentence names the key.
    """
    try:
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"plan={path}: {(error.strerror or 'unreadable').lower()}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"plan={path}: not valid YAML ({line})") from error
    if not isinstance(plan, dict):
        raise UserError(f"plan={path}: a mapping of keys is expected")
    return _Mergekit(path, plan).translate() if "merge_method" in plan else (plan, None)


class _Mergekit:
    """A merge configuration of mergekit (its README, 'Merge Configuration')."""

    def __init__(self, path: Path, plan: dict[str, Any]) -> None:
        self.path = path
        self.plan = plan
        try:
            self.method = choose("merge_method", str(plan["merge_method"]), PARAMETERS)
        except UserError as error:
            raise self._error(str(error)) from None

    def translate(self) -> tuple[dict[str, Any], int | None]:
        """Return the same merge in our keys, and its number of layers, see :func:`read_plan`."""
        self._refuse_unknown("", self.plan, TOP)
        if ("models" in self.plan) == ("slices" in self.plan):
            raise self._error("either models or slices is needed")
        slices = self._slices()
        models = [entry["model"] for entry in slices[0]["sources"]]
        base = self.plan.get("base_model")
        if self.method == "slerp":
            models = self._slerp_order(models, base)
            base = None
        elif self.method != "linear":
            if base is None:
                raise self._error(f"base_model is needed for {self.method}")
            models = [model for model in models if model != base]
        made: dict[str, Any] = {"method": self.method, "models": models}
        if base is not None and self.method != "linear":
            made["base"] = base
        if self.method == "slerp":
            made["t"] = self._spread(slices, "t", None)
        else:
            made["weights"] = [self._spread(slices, "weight", model) for model in models]
            made["normalize"] = bool(self._global("normalize", NORMALIZE[self.method]))
        if self.method in ("ties", "dare_linear", "dare_ties"):
            made["density"] = [self._spread(slices, "density", model) for model in models]
        if self.method not in ("linear", "slerp"):
            made["scale"] = self._global("lambda", 1.0)
        if self._global("rescale", True) is not True:
            raise self._error("parameters.rescale=false is not DARE's equation; remove it")
        layers = slices[-1]["layers"]
        return made | self._dtypes() | self._files(base), layers[1] if layers else None

    def _slices(self) -> list[dict[str, Any]]:
        """Return output slices; a plan of models is one slice over all layers (``layers`` is None)."""
        allowed = PARAMETERS[self.method]
        self._refuse_unknown("parameters.", self.plan.get("parameters") or {}, allowed)
        if "models" in self.plan:
            for entry in self._entries("models", self.plan["models"], ("model",)):
                self._refuse_unknown("models: ", entry, {"model", "parameters"})
                self._refuse_unknown("models: parameters.", entry.get("parameters") or {}, allowed & OF_A_MODEL)
            return [{"sources": self.plan["models"], "layers": None, "parameters": {}}]
        found: list[dict[str, Any]] = []
        for entry in self._entries("slices", self.plan["slices"], ("sources",)):
            self._refuse_unknown("slices: ", entry, {"sources", "parameters"})
            self._entries("slices: sources", entry["sources"], ("model", "layer_range"))
            ranges = {tuple(source["layer_range"]) for source in entry["sources"]}
            names = [source["model"] for source in entry["sources"]]
            expected = found[-1]["layers"][1] if found else 0
            if len(ranges) != 1 or next(iter(ranges))[0] != expected:
                raise self._error(
                    f"slices: layer_range {sorted(map(list, ranges))} stacks layers anew; only slices that leave every "
                    "layer in its place are merged here"
                )
            if found and names != [source["model"] for source in found[0]["sources"]]:
                raise self._error("slices: every slice must name the same models in the same order")
            for source in entry["sources"]:
                self._refuse_unknown("slices: sources: ", source, {"model", "layer_range", "parameters"})
                self._refuse_unknown("slices: parameters.", source.get("parameters") or {}, allowed & OF_A_MODEL)
            self._refuse_unknown("slices: parameters.", entry.get("parameters") or {}, allowed & (OF_A_MODEL | {"t"}))
            found.append(
                {"sources": entry["sources"], "layers": next(iter(ranges)), "parameters": entry.get("parameters") or {}}
            )
        return found

    def _entries(self, where: str, entries: Any, needed: tuple[str, ...]) -> list[dict[str, Any]]:
        """Check that a list holds mappings with the keys that are needed, of the type they have."""
        if not isinstance(entries, list) or not entries:
            raise self._error(f"{where}: a list of mappings is expected")
        for entry in entries:
            self._mapping(where, entry)
            for key in needed:
                if key not in entry:
                    raise self._error(f"{where}: an entry has no '{key}'")
            if not isinstance(entry.get("model", ""), str):
                raise self._error(f"{where}: model: {entry['model']} must be a folder or Hub id")
            layers = entry.get("layer_range", [0, 1])
            if not isinstance(layers, list) or len(layers) != 2 or not all(type(layer) is int for layer in layers):
                raise self._error(f"{where}: layer_range: {layers} must be two whole numbers")
        return entries

    def _spread(self, slices: list[dict[str, Any]], key: str, model: str | None) -> Any:
        """Return the setting of a key over all slices: of the model in the slice, of the slice, or of the whole."""
        cases: list[tuple[str, Setting]] = []
        for index, entry in enumerate(slices):
            own: dict[str, Any] = next((source for source in entry["sources"] if source["model"] == model), {})
            levels = [own.get("parameters") or {}, entry["parameters"], self.plan.get("parameters") or {}]
            value = next((level[key] for level in levels if key in level), DEFAULTS.get(key))
            if value is None:
                raise self._error(f"parameters.{key} is not set")
            first, last = entry["layers"] or (0, 0)
            layers = (first, last - 1) if entry["layers"] else None
            setting = self._setting(key, value, layers)
            if len(slices) == 1:
                return setting
            if index == 0:
                cases.append(("embedding", setting))
            cases.append((f"layers.{first}-{last - 1}", setting))
        return Cases((*cases, ("*", cases[-1][1])))

    def _setting(self, key: str, value: Any, layers: tuple[int, int] | None) -> Setting:
        if isinstance(value, dict):
            value = [value]
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            cases = []
            for entry in value:
                self._refuse_unknown(f"{key}: ", entry, {"filter", "value"})
                text = entry.get("filter")
                inner = self._setting(key, entry.get("value"), layers)
                cases.append(("*" if text in (None, "*") else f"*{text}*", inner))
            return Cases(tuple(cases))
        if isinstance(value, list) and value:
            return Gradient(tuple(self._number(key, entry) for entry in value), layers)
        return self._number(key, value)

    def _number(self, key: str, value: Any) -> float:
        try:
            return float(value)  # YAML reads 1e-3 as a word
        except (TypeError, ValueError) as error:
            raise self._error(f"{key}: '{value}' is no number") from error

    def _slerp_order(self, models: list[str], base: str | None) -> list[str]:
        if base is None or len(models) > 2 or (len(models) == 2 and base not in models):
            raise self._error("slerp needs base_model (t=0) and one other model")
        return [base, *(model for model in models if model != base)]

    def _global(self, key: str, default: Any) -> Any:
        value = (self.plan.get("parameters") or {}).get(key, default)
        if isinstance(value, list | dict):
            raise self._error(f"parameters.{key} must be one value for the whole model")
        return value

    def _dtypes(self) -> dict[str, Any]:
        found = self.plan.get("out_dtype") or self.plan.get("dtype")
        return {} if found is None else {"dtype": str(found).removeprefix("torch.")}

    def _files(self, base: str | None) -> dict[str, Any]:
        source = self.plan.get("tokenizer_source")
        if source == "union":
            raise self._error("tokenizer_source=union rebuilds the vocabulary, which is not done here; name a model")
        if source is None or source == "base":
            return {"files_from": base} if base is not None and self.method == "linear" else {}
        return {"files_from": source, "allow": ["tokenizer", "chat_template"]}

    def _refuse_unknown(self, prefix: str, mapping: Any, known: set[str]) -> None:
        self._mapping(prefix.strip(" .:"), mapping)
        for key in mapping:
            if key not in known:
                raise self._error(f"'{prefix}{key}' is not understood for {self.method}; remove it")

    def _mapping(self, where: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise self._error(f"{where}: a mapping is expected, not '{value}'")

    def _error(self, text: str) -> UserError:
        return UserError(f"plan={self.path}: {text}")
