"""The chart's JSON Schema, whose `config` part follows the configuration's model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from router.config import values as forms
from router.config.settings import Config

FILE = Path(__file__).parents[2] / "charts" / "warmroute" / "values.schema.json"

GIVEN = {  # by other values: a key in the file would be overruled, or a secret in a ConfigMap
    "GatewayConfig": (
        "port", "ops_port", "drain_timeout", "operator_key", "operator_key_file", "api_keys", "api_keys_file",
    ),
    "EventsConfig": ("bind",),
    "StateConfig": ("path",),
    "PeersConfig": ("key_file", "dns"),
    "WarmupConfig": ("files", "prefill_pods", "delimiter"),
}  # fmt: skip


class AsWritten(GenerateJsonSchema):
    """Durations and sizes are numbers, or text with a unit."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """What comes before a number's own check is what reads its text."""
        number = super().function_before_schema(schema)
        units = {forms.duration: forms.SECONDS, forms.size: forms.BYTES}.get(schema["function"]["function"])  # type: ignore[call-overload]
        if units is None:
            return number
        names = "|".join(sorted(filter(None, units), key=len, reverse=True))
        return number | {"type": ["number", "string"], "pattern": f"^ *[0-9]+(\\.[0-9]+)? *(?i:{names})? *$"}


def camel(name: str) -> str:
    """A key as it may be written, too."""
    first, *rest = name.split("_")
    return first + "".join(word.upper() if word == "ttl" else word.title() for word in rest)


def tidied(schema: Any) -> Any:
    """Without titles and defaults (values.yaml and the model hold those), and with keys in both spellings."""
    if isinstance(schema, list):
        return [tidied(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    words = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum"}  # what pydantic leaves of bounds in a union
    found = {words.get(key, key): tidied(item) for key, item in schema.items() if key not in ("title", "default")}
    if isinstance(properties := schema.get("properties"), dict):
        found["properties"] = {
            key: tidied(below) for name, below in properties.items() for key in dict.fromkeys((name, camel(name)))
        }
    return found


def config_schema() -> dict[str, Any]:
    """JSON Schema of the configuration file, as far as it is not given by other values."""
    schema: dict[str, Any] = tidied(Config.model_json_schema(by_alias=False, schema_generator=AsWritten))
    for section, names in GIVEN.items():
        for name in names:
            schema["$defs"][section]["properties"] |= dict.fromkeys((name, camel(name)), False)
    return schema


def chart_schema() -> str:
    """values.schema.json: the chart's own part as it is, and the configuration's as the model says."""
    config = config_schema()
    definitions = config.pop("$defs")
    chart = {key: item for key, item in json.loads(FILE.read_text(encoding="utf-8")).items() if key != "$defs"}
    chart["properties"] = chart["properties"] | {"config": config}
    return json.dumps(chart | {"$defs": definitions}, indent=1) + "\n"


def write_schema() -> None:
    """The file anew."""
    FILE.write_text(chart_schema(), encoding="utf-8")
