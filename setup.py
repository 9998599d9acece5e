"""What setup.cfg cannot say: the settings in configs/ are installed inside tdaf, where tdaf/cli finds them."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["tdaf*", "tasks*"]), "tdaf.configs"],
    package_dir={"tdaf.configs": "configs"},
    package_data={"tdaf.configs": ["**/*.yaml"]},
)
