"""What `serve.py` measures with and against, each a process: clients, the bound, a server as people write it.

    python benchmarks/serve_peer.py load '{"url": ..., "photographs": [...], "clients": 8, ...}'

The argument holds the parameters of the function of that name as JSON; the answer is a line of JSON.
"""

# No postponed annotations here: FastAPI reads those of the endpoint.
import asyncio
import io
import json
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BATCHES = (1, 2, 4, 8, 16)


def load(url: str, photographs: list[str], clients: int, warm_up_s: float, seconds: float) -> dict[str, Any]:
    """Clients that each send a picture, wait for its answer and send the next, over a connection that stays open.

    HTTP is spoken by hand: the clients share the server's cores, and every library costs more.

    Parameters
    ----------
    url : of the endpoint
    photographs : files, sent in turn as the form's `image`
    clients : connections
    warm_up_s, seconds : what ends in the warm-up is not counted, what ends in the `seconds` after it is

    Returns
    -------
    seconds of each answer (`latencies`), answers by status (0: the connection broke), labels in the last answer, and of
    the whole time `answered` and the clients' processor seconds (`cpu_s`)
    """
    import uvloop

    parts = urlsplit(url)
    requests = [_request(parts.netloc, parts.path, Path(name).read_bytes()) for name in photographs]
    begin = time.perf_counter() + warm_up_s
    ended: list[tuple[float, float, int]] = []  # when, after how long, status
    last = b""

    async def client(number: int) -> None:
        nonlocal last
        writer: asyncio.StreamWriter | None = None
        while (start := time.perf_counter()) < begin + seconds:
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
                writer.write(requests[number % len(requests)])
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = re.search(rb"content-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                status = int(head[9:12])
                if status == 200:
                    last = body
                else:
                    await asyncio.sleep(0.05)
                if b"connection: close" in head:
                    writer = None
            except (OSError, asyncio.IncompleteReadError):
                status, writer = 0, None
                await asyncio.sleep(0.05)
            now = time.perf_counter()
            ended.append((now, now - start, status))
            number += clients

    async def all_clients() -> None:
        await asyncio.gather(*(client(number) for number in range(clients)))

    before = resource.getrusage(resource.RUSAGE_SELF)
    uvloop.run(all_clients())
    after = resource.getrusage(resource.RUSAGE_SELF)
    counted = [(duration, status) for when, duration, status in ended if begin <= when < begin + seconds]
    statuses = [status for _, status in counted]
    return {
        "latencies": sorted(duration for duration, status in counted if status == 200),
        "statuses": {str(status): statuses.count(status) for status in set(statuses)},
        "labels": last.count(b'"label"'),
        "answered": len(ended),
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def _request(host: str, path: str, photograph: bytes) -> bytes:
    body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    body += photograph + b"\r\n--x--\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def bound(model: str, seconds: float, threads: int) -> dict[str, Any]:
    """Pictures a second through the image tower, prepared before, at the best of BATCHES.

    Parameters
    ----------
    model : directory
    seconds : for each batch size, after a warm-up of a tenth
    threads : of torch
    """
    import numpy as np
    import torch

    from orchestrator.inference import Embedder

    torch.set_num_threads(threads)
    embedder = Embedder(model)
    side = embedder.model.config.image_size
    found = {}
    for batch in BATCHES:
        pixels_N3RR = np.random.default_rng(0).integers(0, 255, (batch, 3, side, side), dtype=np.uint8)
        begin = time.perf_counter() + seconds / 10
        done = 0
        while (now := time.perf_counter()) < begin + seconds:
            embedder.embed_images(pixels_N3RR)
            if now >= begin:
                done += batch
        found[batch] = done / (time.perf_counter() - begin)
    return {"images_per_s": found}


def plain_server(model: str, classes: list[str], port: int) -> None:
    """FastAPI and transformers without ado: one process, one picture at a time, the text side computed once.

    Parameters
    ----------
    model : directory of transformers' CLIPModel and CLIPProcessor
    classes : names
    port : on 127.0.0.1
    """
    import torch
    import uvicorn
    from fastapi import FastAPI, File, UploadFile
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    clip, processor = CLIPModel.from_pretrained(model).eval(), CLIPProcessor.from_pretrained(model)
    app = FastAPI()

    @torch.inference_mode()
    def embed(kind: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        features = clip.get_image_features(**inputs) if kind == "image" else clip.get_text_features(**inputs)
        features = getattr(features, "pooler_output", features)
        return features / features.norm(dim=-1, keepdim=True)

    parts = [classes[start : start + 100] for start in range(0, len(classes), 100)]
    texts_CD = torch.cat([embed("text", processor(text=part, return_tensors="pt", padding=True)) for part in parts])
    scale = clip.logit_scale.exp().item()

    @app.post("/classify")
    async def classify(image: UploadFile = File()) -> list[dict[str, str | float]]:  # noqa: B008
        picture = Image.open(io.BytesIO(await image.read())).convert("RGB")
        image_1D = embed("image", processor(images=picture, return_tensors="pt"))
        probabilities, order = (scale * image_1D @ texts_CD.T).softmax(-1)[0].sort(descending=True)
        return [
            {"label": classes[place], "score": score}
            for place, score in zip(order.tolist(), probabilities.tolist(), strict=True)
        ]

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    functions: dict[str, Callable[..., Any]] = {"load": load, "bound": bound, "plain_server": plain_server}
    print(json.dumps(functions[sys.argv[1]](**json.loads(sys.argv[2]))))
