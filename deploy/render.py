"""Write into kuberay.yaml what follows from server.yaml and from the server's own code: python deploy/render.py"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MANIFEST = HERE / "kuberay.yaml"
CONFIGURATION = HERE / "server.yaml"

GENERATED = re.compile(r"^( *)# generated\n.*?^ *# end\n", re.MULTILINE | re.DOTALL)


def rendered(manifest: str) -> str:
    """The manifest with its two generated parts made anew: the configuration of Ray Serve, and the environment."""
    import yaml

    from serving.configuration_file import read_configuration
    from serving.ray_config import ray_config_text
    from serving.ray_environment import cluster_settings

    environment = [{"name": name, "value": value} for name, value in cluster_settings().items()]
    parts = iter(
        [ray_config_text(read_configuration(CONFIGURATION)), yaml.safe_dump(environment, sort_keys=False)]
    )

    def fill(found: re.Match[str]) -> str:
        indent = found[1]
        lines = "".join(f"{indent}{line}\n" for line in next(parts).splitlines())
        return f"{indent}# generated\n{lines}{indent}# end\n"

    return GENERATED.sub(fill, manifest)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    MANIFEST.write_text(rendered(MANIFEST.read_text("utf-8")), "utf-8")
