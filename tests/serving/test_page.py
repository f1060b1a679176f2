"""The files of the page, as any client gets them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from serving.routes.page import FOLDER

FILES = sorted(path.name for path in FOLDER.iterdir())


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in FILES)])
def test_files_come_with_a_policy_that_lets_nothing_else_in(api: Any, path: str) -> None:
    answer = api.get(path)
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert api.request("HEAD", path).headers["content-length"] == str(len(answer.content))


def test_each_kind_of_file_says_what_it_is(api: Any) -> None:
    kinds = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for name in FILES:
        found = api.get(f"/page/{name}").headers["content-type"]
        assert found.split(";")[0] == kinds[Path(name).suffix]
    assert api.get("/").content == (FOLDER / "page.html").read_bytes()


@pytest.mark.parametrize("name", ["none.js", "page.py", "%2e%2e%2fpage.py", "../routes/page.py"])
def test_no_other_file_is_given(api: Any, name: str) -> None:
    answer = api.get(f"/page/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "route_not_found"


def test_a_parameter_is_refused_as_everywhere(api: Any) -> None:
    assert api.get("/?q=json").json()["error"]["code"] == "unknown_parameter"


def test_files_name_no_other_host_and_make_no_markup_of_text() -> None:
    for name in FILES:
        text = (FOLDER / name).read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"(?:https?:)?//\w[\w-]*\.", text), name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage", text
        )
    html = (FOLDER / "page.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
    for named in re.findall(r'(?:src|href)="(page/[^"]+)"', html):
        assert named.removeprefix("page/") in FILES
