"""What a document store tells of the fields of its documents' meta."""

from collections.abc import Iterator
from typing import Any


class MetadataFields:
    """Adds it to a store, whose `_metas` yields the meta of the documents that match."""

    def _metas(self, filters: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """For each field of meta {"type": boolean, int, float or keyword}, as its last value is."""
        kinds = {bool: "boolean", int: "int", float: "float"}
        info = {}
        for meta in self._metas(None):
            for key, value in meta.items():
                if value is not None:
                    info[key] = {"type": kinds.get(type(value), "keyword")}
        return info

    def get_metadata_field_min_max(self, metadata_field: str) -> dict[str, Any]:
        """{"min", "max"} of the numbers or strings in a field; None without any, or if mixed."""
        values = [v for v in self._values(metadata_field, None) if isinstance(v, int | float | str)]
        if not values or len({isinstance(value, str) for value in values}) > 1:
            return {"min": None, "max": None}
        return {"min": min(values), "max": max(values)}

    def get_metadata_field_unique_values(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """(`size` distinct values of a field from number `from_`, sorted as str; how many in all).

        `search_term` is a part of the values wanted, in any case.
        """
        unique = _distinct(self._values(metadata_field, filters))
        if search_term:
            unique = [value for value in unique if search_term.lower() in str(value).lower()]
        unique.sort(key=lambda value: (str(value), type(value).__name__))
        return unique[from_ : from_ + size], len(unique)

    def count_unique_metadata_by_filter(
        self, filters: dict[str, Any], metadata_fields: list[str]
    ) -> dict[str, int]:
        """For each field how many distinct values the documents that match have."""
        names = [field.removeprefix("meta.") for field in metadata_fields]
        metas = list(self._metas(filters))
        return {
            name: len(_distinct(meta[name] for meta in metas if meta.get(name) is not None))
            for name in names
        }

    def _values(self, field, filters):
        name = field.removeprefix("meta.")
        return [meta[name] for meta in self._metas(filters) if meta.get(name) is not None]


def _distinct(values):
    """Values without repetitions, told apart by their types, too."""
    return list({repr(value): value for value in values}.values())
