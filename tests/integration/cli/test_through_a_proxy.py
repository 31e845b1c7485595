"""A farm that only a proxy knows: the client and a machine work through it, and trust the farm's own certificate."""

import hashlib
import ssl
from functools import partial
from pathlib import Path

import pytest

from renderonline.farm.errors import NotAvailable
from renderonline.rnoclient.sdk import Client, Login
from tests.support.certificates import self_signed
from tests.support.connect_proxy import ConnectProxy
from tests.support.farm import RealFarm

NAME = "farm.studio"
PASSWORD = "sesame-open"
SCENE = "camera { location -3*z look_at 0 } light_source { 5*y-5*z rgb 1 } sphere { 0 1 pigment { rgb x } }"


def test_everything_goes_through_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    files, _ = self_signed(tmp_path)
    der = ssl.PEM_cert_to_DER_cert(files.fullchain_pem_path.read_text())
    fingerprint = f"sha256:{hashlib.sha256(der).hexdigest()}"
    flags = ("--certificate", str(files.fullchain_pem_path), "--key", str(files.priv_pem_path))
    trusting = partial(Login, fingerprint=fingerprint)
    monkeypatch.setattr("tests.support.farm.Login", trusting)
    scene = tmp_path / "ball.pov"
    scene.write_text(SCENE)
    with RealFarm(tmp_path, flags=flags) as farm:
        port = int(farm.url.rpartition(":")[2])
        place, url = f"{NAME}:{port}", f"https://{NAME}:{port}"
        with ConnectProxy({place: ("127.0.0.1", port)}, f"ada:{PASSWORD}").running() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://ada:{PASSWORD}@127.0.0.1:{proxy.port}")
            with Client(trusting(url, farm.login.email, farm.login.token)) as client:
                words = ["node", "--join", url, "--name", "box", "--data-directory", str(tmp_path / "box")]
                # Another computer: nothing of the farm's files is there for it, so they travel.
                apart = {"PYTHONPATH": str(Path("tests/faults/clock").absolute()), "FAULTS_APART": str(farm.data)}
                code = {"RENDERONLINE_JOIN_CODE": client.admin.invite()["code"]}
                log = tmp_path / "box.log"
                node = farm.supervisor.start("HPCServer", [*words, "--fingerprint", fingerprint], log, code | apart)
                farm.supervisor.wait_for(node, (tmp_path / "box" / "hpcserver.json").exists, 120)
                sizes = {"width": "32", "height": "18"}
                task = client.submit(scene, engine="povray", frames="1-2", arguments=sizes)["task_id"]
                assert farm.wait_for_status(task, "succeeded", "failed")["status"] == "succeeded"
                assert len(client.download_results(task, tmp_path / "frames")) == 2
            assert ({*proxy.asked}, proxy.refused) == ({place}, [])
            monkeypatch.setenv("HTTPS_PROXY", f"http://ada:wrong-{PASSWORD}@127.0.0.1:{proxy.port}")
            with pytest.raises(NotAvailable) as refused:
                Client(trusting(url, "a@b", "t"), patience_s=0).me()
        way = f"{url} (through the proxy 127.0.0.1:{proxy.port})"
        assert f"{way} can't be reached: Tunnel connection failed: 407" in refused.value.message
        printed = refused.value.message + log.read_text() + "".join(capfd.readouterr())
        assert PASSWORD not in printed
