from __future__ import annotations

from pathlib import Path

from tests.helpers import run_python
from yolorep.hosts.yolov5.tree import LANDMARKS

HIDE = """
import sys

class Hidden:
    names = ("pkg_resources", "IPython", "git")
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(name)

for name in [n for n in sys.modules if n.partition(".")[0] in Hidden.names]:
    del sys.modules[name]
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in Hidden.names else real(name, package)
sys.meta_path.insert(0, Hidden())
"""


def test_compat_stands_in_for_modules_that_are_missing() -> None:
    code = HIDE + (
        "from yolorep.hosts.yolov5.compat import stand_in\n"
        "stand_in(); stand_in()\n"
        "import pkg_resources, IPython, git\n"
        "from IPython.display import display\n"
        "from IPython import get_ipython\n"
        "assert pkg_resources.parse_version('2.14.0') > pkg_resources.parse_version('2.9')\n"
        "assert get_ipython() is None and callable(display)\n"
        "try:\n"
        "    git.Repo('.')\n"
        "except git.exc.InvalidGitRepositoryError:\n"
        "    print('unknown')\n"
        "from matplotlib import pyplot; pyplot.figure()\n"
    )
    assert run_python(code, MPLBACKEND="Agg").strip() == "unknown"


def test_a_trees_check_of_its_requirements_runs_and_installs_nothing(tmp_path: Path) -> None:
    """The calls are those of `check_requirements` in v5.0 to v7.0, which prints what fails in it."""
    code = HIDE + (
        "from yolorep.hosts.yolov5.compat import stand_in\n"
        "stand_in()\n"
        "import pkg_resources as pkg\n"
        "wanted = [f'{x.name}{x.specifier}' for x in pkg.parse_requirements(open('requirements.txt'))]\n"
        "for r in [*wanted, 'no-such-package>=1']:\n"
        "    try:\n"
        "        pkg.require(r)\n"
        "    except (pkg.VersionConflict, pkg.DistributionNotFound):\n"
        "        print('would install', r)\n"
    )
    (tmp_path / "requirements.txt").write_text("no-such-package>=1\n")
    assert run_python(code, cwd=tmp_path) == ""


def test_compat_leaves_what_is_there() -> None:
    code = (
        "import sys, types, numpy as np, os\n"
        "for name in ('pkg_resources', 'IPython', 'git'): sys.modules[name] = types.ModuleType(name)\n"
        "mine = dict(sys.modules); np.trapz = 'mine'; os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] = '0'\n"
        "from yolorep.hosts.yolov5.compat import stand_in\n"
        "stand_in()\n"
        "assert all(sys.modules[name] is mine[name] for name in ('pkg_resources', 'IPython', 'git'))\n"
        "print(np.trapz, os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'])\n"
    )
    assert run_python(code).split() == ["mine", "0"]


def test_compat_stands_in_for_functions_that_are_gone() -> None:
    code = (
        "import numpy as np\n"
        "from PIL import ImageFont\n"
        "for owner, name in ((np, 'trapz'), (np, 'int'), (ImageFont.FreeTypeFont, 'getsize')):\n"
        "    if name in vars(owner): delattr(owner, name)\n"
        "from yolorep.hosts.yolov5.compat import stand_in\n"
        "from yolorep.hosts.network_setting import font_file\n"
        "stand_in()\n"
        "font = ImageFont.truetype(str(font_file()), 20)\n"
        "one, two = font.getsize('m'), font.getsize('mm')\n"
        "assert two[0] > 1.8 * one[0] and two[1] == one[1] > 10, (one, two)\n"
        "print(np.trapz([0, 1, 2], [0, 1, 2]), np.int('3'))\n"
    )
    assert run_python(code).split() == ["2.0", "3"]


def test_compat_names_what_a_tree_needs_and_is_not_installed(tmp_path: Path) -> None:
    for name in LANDMARKS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "models" / "yolo.py").write_text("import nonesuch_frames as frames\n")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from yolorep.errors import HostError\n"
        "from yolorep.hosts.yolov5.compat import tree_modules\n"
        "try:\n"
        "    tree_modules(Path(sys.argv[1]), 'models.common')\n"
        "except HostError as error:\n"
        "    print(error)\n"
    )
    printed = run_python(code, tmp_path, cwd=tmp_path).strip().splitlines()[-1]
    assert printed.startswith(f"{tmp_path} cannot be imported: No module named 'nonesuch_frames'")
