"""What several processes compute together is, bit for bit, what one computes alone."""

import subprocess
import sys
from pathlib import Path


def test_ranks_agree_with_one_process(tmp_path):
    script = Path(__file__).with_name("ranks.py")
    ran = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
