"""The page docs/settings.md: every setting, its meaning and its default in each profile.

What does not belong here: the settings themselves (`settings.py`).
"""

from typing import Any

from compalign_dagster.profiles import PROFILES
from compalign_dagster.settings import PREFIX, Settings


def table_markdown() -> str:
    """The table of docs/settings.md: every variable, its meaning and its default in each profile."""
    lines = ["| variable | meaning | sample | photos | paper |", "| --- | --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        cells = []
        for profile in PROFILES.values():
            value = profile[name].value if name in profile else field.get_default(call_default_factory=True)
            cells.append(_cell(value))
        lines.append(f"| `{PREFIX}{name.upper()}` | {field.description} | {' | '.join(cells)} |")
    lines += ["", "| profile | setting | value | where the value comes from |", "| --- | --- | --- | --- |"]
    for profile_name, profile in PROFILES.items():
        for name, default in profile.items():
            lines.append(f"| {profile_name} | `{name}` | {_cell(default.value)} | {default.provenance} |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None or value == {}:
        return "-"
    if isinstance(value, dict):
        return "`" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "`"
    return f"`{value}`"


_PAGE = """# Settings

Made by `python -m compalign_dagster.settings_page`. Each setting is an environment variable; a profile
(`COMPALIGN_PROFILE`) is a set of defaults. A wrong value, or a name that does not exist, stops the code
location from loading and says what to do.

"""

if __name__ == "__main__":
    print(_PAGE + table_markdown(), end="")
