"""The application.

serve run serving.app:build model=runs/demo/final
serve deploy serving/config.yaml
"""

from typing import Any

from ray import serve
from ray.serve import Application

from orchestrator import storage
from orchestrator.train.waiting import require_nodes
from serving.classifiers import Classifiers
from serving.encoders import ImageEncoder, TextEncoder
from serving.service import Ingress
from serving.settings import Settings

# In one forward pass.
TEXTS = 64


# No postponed annotations here: Serve makes `Settings` of the arguments by the annotation itself.
def build(settings: Settings) -> Application:
    """The graph of deployments: an ingress, two encoders for each model, and the keeper of classifiers.

    Parameters
    ----------
    settings : from the command line (`model=runs/demo/final`) or `args` of a config file; a deployment's replicas,
        resources and queue are set in the config file, under its name (Ingress, ImageEncoder-default ...)
    """
    settings.storage = storage.absolute(settings.storage)
    require_nodes("nodes", settings.nodes)

    def reserve(**resources: float) -> dict[str, Any]:
        return {**resources, "label_selector": settings.nodes}

    on_device = reserve(num_gpus=1) if settings.hardware == "gpu" else reserve(num_cpus=0.5)
    images, texts = {}, {}
    for name, uri in settings.models.items():
        uri = storage.absolute(uri)
        images[name] = _encoder(ImageEncoder, name, settings, on_device).bind(name, uri, settings.hardware)
        # A text tower has little to do: classifiers are kept.
        texts[name] = _encoder(TextEncoder, name, settings, reserve(num_cpus=0.5)).bind(name, uri, "cpu")
    classifiers = serve.deployment(ray_actor_options=reserve(num_cpus=0.1))(Classifiers).bind(settings, texts)
    options: dict[str, Any] = {"name": "Ingress", "max_ongoing_requests": 128}
    ingress = serve.deployment(**options, ray_actor_options=reserve(num_cpus=0.4))(serve.ingress()(Ingress))
    return ingress.bind(settings, images, texts, classifiers)


def _encoder(kind: type, name: str, settings: Settings, resources: dict[str, Any]) -> serve.Deployment:
    """Its queue is short: who would wait for long hears at once that the server has enough to do."""
    # Pictures come a message at a time, texts a request at a time; a text is a small part of a picture's work.
    at_once, queued, batch_size = (8, 32, settings.batch_size) if kind is ImageEncoder else (64, 256, TEXTS)
    return serve.deployment(
        name=f"{kind.__name__}-{name}",
        ray_actor_options=resources,
        user_config={"batch_size": batch_size, "batch_wait_s": 0.0},
        max_ongoing_requests=at_once,
        max_queued_requests=queued,
    )(kind)
