"Build configuration, read from settings.ini."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).parent
ini = ConfigParser(delimiters="=")
ini.read(root/"settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
lines = lambda key: [o.strip() for o in cfg[key].splitlines() if o.strip()]
# README.md's links are relative to the repository; a package index shows the page elsewhere.
readme = (root/"README.md").read_text(encoding="utf-8") if (root/"README.md").exists() else cfg["description"]
raw = cfg["git_url"].replace("github.com", "raw.githubusercontent.com")
readme = re.sub(r"(!\[[^\]]*\]\()(?![a-z]+:|#)", rf"\1{raw}/{cfg['branch']}/", readme)
readme = re.sub(r"(\]\()(?![a-z]+:|#)", rf"\1{cfg['git_url']}/blob/{cfg['branch']}/", readme)
extras = {name: lines(f"{name}_requirements") for name in ("nb", "dev", "app", "bench")}
extras["dev"] += extras["nb"] # whoever develops opens the notebooks too

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"].split(),
    author=cfg["author"], author_email=cfg["author_email"], license=cfg["license"], url=cfg["git_url"],
    project_urls={"Documentation": cfg["doc_url"], "Repository": cfg["git_url"]},
    long_description=readme, long_description_content_type="text/markdown",
    packages=find_packages(include=["clm_nb", "clm_nb.*"]), package_data={"clm_nb": ["base/*"]}, python_requires=f">={cfg['min_python']}",
    install_requires=lines("requirements"),
    extras_require=extras,
    entry_points={"console_scripts": lines("console_scripts"), "nbdev": ["clm_nb=clm_nb._modidx:d"]},
    zip_safe=False,
)
