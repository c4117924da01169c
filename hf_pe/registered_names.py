"""Make pydantic accept a string only if it is a name in a registry, such as a criterion in a recipe file."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from hf_pe.errors import nearest


class RegisteredName:
    """Validate a string against the current names in a registry, and list these names in the schema.

    Args:
        registry: its keys are the accepted names.
        replacements: for names of earlier versions, a sentence on what to give instead.

    Example:
        >>> from typing import Annotated
        >>> from pydantic import TypeAdapter
        >>> colours = {"red": 1, "green": 2}
        >>> Colour = TypeAdapter(Annotated[str, RegisteredName(colours)])
        >>> Colour.json_schema()
        {'enum': ['red', 'green'], 'type': 'string'}
        >>> colours["blue"] = 3
        >>> Colour.validate_python("blue")
        'blue'
    """

    def __init__(self, registry: Mapping[str, object], replacements: Mapping[str, str] = MappingProxyType({})) -> None:
        self.registry, self.replacements = registry, replacements

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, core_schema.str_schema())

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": [*self.registry], "type": "string"}

    def _checked(self, name: str) -> str:
        if name in self.registry:
            return name
        if name in self.replacements:
            raise ValueError(f"'{name}' is not supported any more. {self.replacements[name]}")
        raise ValueError(f"expected one of {', '.join(self.registry)}; got '{name}'.{nearest(name, self.registry)}")
