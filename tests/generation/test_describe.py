"""What a run notes about the code it was made with."""

import subprocess

from lit_thinkfast.generation.describe import git_state


def git(*command):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *command], check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_and_whether_tracked_files_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state() is None, "outside of a repository"
    git("init", "-q")
    assert git_state() is None, "a repository without commits"
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-qm", "first")
    (tmp_path / "untracked").write_text("b")
    assert git_state() == {"commit": git("rev-parse", "HEAD"), "changed": False}
    (tmp_path / "file").write_text("c")
    assert git_state() == {"commit": git("rev-parse", "HEAD"), "changed": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() is None, "without git"
