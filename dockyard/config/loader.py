"""Loads the settings from the defaults, a YAML file, the environment and options, in increasing order of precedence."""

from collections.abc import Collection, Mapping, Sequence

import attrs

from dockyard.config.checks import find_errors, find_warnings
from dockyard.config.reader import Option, SettingsFile, SettingsReader, to_yaml
from dockyard.config.settings import AWS_REGION_VARIABLES, Settings, Upstream, aws_region, user_cache_directory
from dockyard.config.types import Secret, converter

# The variables of the options of the command line.
COMMAND_VARIABLES = ("DOCKYARD_CONFIG", "DOCKYARD_URL", "DOCKYARD_CA_FILE")


class SettingsError(Exception):
    """The settings cannot be used. `errors` has one sentence for each reason, with its key and its location."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("; ".join(errors))
        self.errors = errors


@attrs.frozen
class LoadedSettings:
    """All settings, and what is wrong with them. Where `is_wrong`, they have the defaults."""

    settings: Settings
    errors: Sequence[str]
    _wrong_keys: Collection[str]

    def is_wrong(self, key: str) -> bool:
        """Whether a key or a section has an error, or what contains it, or what it contains."""
        return any(_contains(key, wrong) or _contains(wrong, key) for wrong in self._wrong_keys)

    @property
    def usable_upstreams(self) -> Sequence[Upstream]:
        """The upstreams without errors."""
        upstreams = enumerate(self.settings.upstreams)
        return [upstream for index, upstream in upstreams if not self.is_wrong(f"upstreams[{index}]")]


def load(
    path: SettingsFile | None, environ: Mapping[str, str], options: Mapping[str, Option] | None = None
) -> Settings:
    """Load the settings; without a path only from options and environment. Raises SettingsError with all errors."""
    loaded = load_all(path, environ, options)
    if loaded.errors:
        raise SettingsError(list(loaded.errors))
    return loaded.settings


def load_all(
    path: SettingsFile | None, environ: Mapping[str, str], options: Mapping[str, Option] | None = None
) -> LoadedSettings:
    """Load the settings as far as they have no errors. `options` are those of the command line, by key."""
    reader = SettingsReader(Settings, environ, converter().structure, Secret, options or {})
    settings = reader.read(path)
    if "storage.directory" not in reader.locations:
        storage = attrs.evolve(settings.storage, directory=user_cache_directory(environ))
        settings = attrs.evolve(settings, storage=storage)
    if "storage.region" not in reader.locations or not settings.storage.region:
        settings = attrs.evolve(settings, storage=attrs.evolve(settings.storage, region=aws_region(environ)))
        reader.locate("storage.region", next((name for name in AWS_REGION_VARIABLES if environ.get(name)), ""))
    settings = attrs.evolve(settings, upstreams=_mark_default(settings.upstreams, reader.locations))
    for key, message in find_errors(settings):
        reader.add_error(key, message)
    unknown = reader.find_unknown_variables("DOCKYARD_", COMMAND_VARIABLES)
    warnings = (*reader.warnings, *unknown, *find_warnings(settings, reader.raw_values))
    expected_logins = _expected_logins(settings, reader.raw_values)
    settings = attrs.evolve(settings, warnings=warnings, expected_logins=expected_logins)
    return LoadedSettings(settings, reader.errors, reader.keys_with_error)


def show(settings: Settings) -> str:
    """The settings as YAML that `load` reads back, except the secrets, which are `***`."""
    document = converter().unstructure(settings)
    del document["warnings"], document["expected_logins"]
    return to_yaml(document)


def _expected_logins(settings: Settings, raw_values: Mapping[str, str]) -> tuple[str, ...]:
    types = [raw_values.get(f"upstreams[{index}].auth.type", "") for index in range(len(settings.upstreams))]
    pairs = zip(settings.upstreams, types, strict=True)
    return tuple(upstream.prefix for upstream, written in pairs if written.strip().lower() == "keychain")


def _mark_default(upstreams: tuple[Upstream, ...], locations: Mapping[str, str]) -> tuple[Upstream, ...]:
    """Make docker.io the default upstream, unless another one is, or `default` is set for docker.io itself."""
    if any(upstream.default for upstream in upstreams):
        return upstreams
    for index, upstream in enumerate(upstreams):
        if upstream.prefix == "docker.io" and f"upstreams[{index}].default" not in locations:
            return (*upstreams[:index], attrs.evolve(upstream, default=True), *upstreams[index + 1 :])
    return upstreams


def _contains(section: str, key: str) -> bool:
    return not section or key == section or key.startswith((f"{section}.", f"{section}["))
