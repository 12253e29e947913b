"""Damage to saved models, counted: `python tests/damage.py flips 700`, `python tests/damage.py kills 300`.

Also the helpers of the tests that do the same in small numbers.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from readers import backbone, reader, settings, tokenizer

from hiermem.config import HierMemConfig
from hiermem.errors import HierMemError
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.mamba.module import MambaConfig
from hiermem.model import HierMemModel
from hiermem.seal import CARD, SEAL, render_seal, seal_entry

DATA = Path(__file__).parent / "data"


@cache
def adapters_work() -> bool:
    """Whether this version of transformers takes this one of PEFT: 5.24 wants one that is not out yet."""
    try:
        from peft import LoraConfig

        backbone().add_adapter(LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    except (ImportError, ValueError):
        return False
    return True


def tiny_backbone(folder: Path) -> Path:
    """A plain backbone with its tokenizer."""
    backbone().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def every_part(folder: Path, value: float, segment: int = 16) -> HierMemModel:
    """A model by its backbone's name with memory embeddings, Mamba heads and an adapter, all of one value."""
    config = settings(chunk=16, segment=segment, policy="attention").settings()
    config |= {"summary": SummaryConfig(tokens=2, width=4), "mamba": MambaConfig(groups=[[1, 0]])}
    model = HierMemModel.from_pretrained(folder, HierMemConfig(**config), dtype=torch.float32)
    if adapters_work():
        from peft import LoraConfig

        model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.startswith("backbone.") or ".lora_" in name:
                weight.fill_(value)
    return model


def whole(value: float, segment: int = 16) -> HierMemModel:
    """A model whose backbone has no name, the first row of its output layer of one value."""
    model = reader(config=settings(chunk=16, segment=segment, policy="attention"))
    with torch.no_grad():
        model.backbone.lm_head.weight[0].fill_(value)
    return model


def files_of(folder: Path) -> list[Path]:
    """Files that a save wrote and a load reads, the seal included, the card not."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CARD)


def damage(folder: Path, other: Path, draw: random.Random) -> str:
    """One flip, cut, swap, loss or addition in one file; what was done, in words."""
    path = draw.choice(files_of(folder))
    data, kind = (
        bytearray(path.read_bytes()),
        draw.choice(["flip", "flip", "byte", "cut", "swap", "lose", "add"]),
    )
    if kind == "flip":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "byte":
        at = draw.randrange(len(data))
        data[at] = (data[at] + 1 + draw.randrange(255)) % 256
    elif kind == "cut":
        del data[draw.randrange(len(data)) :]
    elif kind == "add":
        data += b"\0"
    elif kind == "swap":
        data = bytearray((other / path.relative_to(folder)).read_bytes())
        if data == path.read_bytes():
            data.reverse()
    if kind == "lose":
        path.unlink()
    else:
        path.write_bytes(data)
    return f"{kind} in {path.relative_to(folder)}"


def outcome(folder: Path) -> str:
    """`refused` in one sentence, `loaded`, or what else came of loading the model there."""
    try:
        HierMemModel.from_pretrained(folder, device="cpu")
    except HierMemError as error:
        return "refused" if "\n" not in str(error) and len(str(error)) < 1000 else f"long: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def reseal(folder: Path) -> None:
    """Write a seal that fits, as a stranger can."""
    files = {p.relative_to(folder).as_posix(): seal_entry(p) for p in files_of(folder) if p.name != SEAL}
    (folder / SEAL).write_bytes(render_seal(files))


def killed(save: Callable[[Path], None], folder: Path, before: int = -1, after: float | None = None) -> bool:
    """Run ``save(folder)`` in a process of its own that ends before its n-th operation on files there, or is
    killed after some seconds; whether it ended so."""
    child = os.fork()
    if not child:
        if before >= 0:
            left = before

            def hook(event: str, arguments: tuple[Any, ...]) -> None:
                nonlocal left
                operations = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open", "os.chmod")
                if event in operations and str(arguments[0]).startswith(str(folder)):
                    left -= 1
                    if left < 0:
                        os._exit(9)

            sys.addaudithook(hook)
        try:
            save(folder)
        finally:
            os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] != 0


def value_of(model: HierMemModel) -> tuple[int, set[float]]:
    """The segment in the configuration, and the values of all that `every_part` or `whole` set."""
    named = [(n, w) for n, w in model.named_parameters() if not n.startswith("backbone.") or ".lora_" in n]
    named = [(n, w) for n, w in named if not n.startswith(("namm.", "scorer."))]
    named = named or [("head", model.backbone.lm_head.weight)]
    return model.config.segment, {float(value) for _, weight in named for value in weight.flatten()[:3]}


def flips(count: int) -> Counter[str]:
    """Outcomes of loading models with one damage each."""
    torch.set_num_threads(1)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        plain = tiny_backbone(work / "plain")
        every_part(plain, 0.5).save_pretrained(work / "named")
        every_part(plain, 0.25, 32).save_pretrained(work / "named-other")
        whole(0.5).save_pretrained(work / "whole")
        whole(0.25, 32).save_pretrained(work / "whole-other")
        shutil.copytree(DATA / "saved-2" / "model", work / "unsealed")
        config = json.loads((work / "unsealed" / "config.json").read_text())
        config["backbone"] = str(DATA / "saved-2" / "backbone")
        (work / "unsealed" / "config.json").write_text(json.dumps(config))
        shutil.copytree(work / "unsealed", work / "unsealed-other")
        for seed in range(count):
            kind = ("named", "whole", "named", "whole", "unsealed")[seed % 5]
            shutil.copytree(work / kind, work / "one")
            done = damage(work / "one", work / f"{kind}-other", random.Random(seed))
            got = outcome(work / "one")
            found[f"{kind.removeprefix('named').removeprefix('whole') or 'sealed'}: {got}"] += 1
            if got != "refused" and (kind != "unsealed" or got != "loaded"):
                print(seed, kind, done, got, flush=True)  # noqa: T201
            shutil.rmtree(work / "one")
    return found


def kills(count: int) -> Counter[str]:
    """Remains of saves over an older model that were killed at random moments."""
    torch.set_num_threads(1)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        work, draw = Path(name), random.Random(0)
        plain = tiny_backbone(work / "plain")
        for made in (lambda v, s: every_part(plain, v, s), whole):
            models = [made(0.5, 16), made(0.25, 32)]
            models[0].save_pretrained(work / "saved")
            start = time.perf_counter()
            models[0].save_pretrained(work / "saved")
            length = time.perf_counter() - start
            now = 0
            for _ in range(count // 2):
                after = draw.uniform(0, 2.5 * length)
                cut = killed(models[1 - now].save_pretrained, work / "saved", after=after)
                try:
                    known = value_of(HierMemModel.from_pretrained(work / "saved", device="cpu"))
                except Exception as error:
                    found[f"not loaded: {error}"] += 1
                    continue
                at = {(16, 0.5): 0, (32, 0.25): 1}.get((known[0], min(known[1])))
                if at is None or len(known[1]) != 1:
                    found[f"mixed: {known}"] += 1
                    continue
                found[("killed, " if cut else "ended, ") + ("old" if at == now else "new")] += 1
                now = at
            shutil.rmtree(work / "saved")
    return found


if __name__ == "__main__":
    kind, count = sys.argv[1], int(sys.argv[2])
    print(json.dumps({"flips": flips, "kills": kills}[kind](count), indent=1))  # noqa: T201
