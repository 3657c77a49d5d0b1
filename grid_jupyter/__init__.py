"""grid_jupyter: private data science and federated learning where its users already work.

Importing the package loads neither torch nor Jupyter: each public name is imported at first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC: dict[str, str] = {
    "BaseDataset": "grid_jupyter.client.federated",
    "Credentials": "grid_jupyter.client.credentials",
    "DataCentricFLClient": "grid_jupyter.client.node",
    "Device": "grid_jupyter.client.device",
    "FLClient": "grid_jupyter.client.fl_client",
    "FLJob": "grid_jupyter.client.fl_client",
    "FederatedDataLoader": "grid_jupyter.client.federated",
    "FederatedDataset": "grid_jupyter.client.federated",
    "JobPolicy": "grid_jupyter.wire.messages",
    "ModelCentricFLClient": "grid_jupyter.client.model_centric",
    "Adam": "grid_jupyter.plans.optimisers",
    "GridJobs": "grid_jupyter.client.grid_jobs",
    "Job": "grid_jupyter.client.jobs",
    "MultiPointerTensor": "grid_jupyter.tensors.multi",
    "NodeClient": "grid_jupyter.client.node",
    "Plan": "grid_jupyter.plans.plan",
    "SGD": "grid_jupyter.plans.optimisers",
    "Optims": "grid_jupyter.client.optims",
    "PrivateGridNetwork": "grid_jupyter.client.sandbox",
    "PrivateTensor": "grid_jupyter.tensors.private",
    "PublicGridNetwork": "grid_jupyter.client.grid",
    "RemoteTensor": "grid_jupyter.tensors.remote",
    "TorchHook": "grid_jupyter.client.virtual",
    "VirtualWorker": "grid_jupyter.client.virtual",
    "WebsocketClientWorker": "grid_jupyter.client.websocket",
    "WebsocketServerWorker": "grid_jupyter.client.websocket",
    "accuracy": "grid_jupyter.client.optims",
    "add_model": "grid_jupyter.client.optims",
    "create_sandbox": "grid_jupyter.client.sandbox",
    "federate": "grid_jupyter.client.federated",
    "federated_avg": "grid_jupyter.client.optims",
    "federated_rounds": "grid_jupyter.client.fedavg",
    "func2plan": "grid_jupyter.plans.plan",
    "plot_accuracy": "grid_jupyter.client.accuracy_plot",
    "inference_plan": "grid_jupyter.plans.models",
    "loss_plan": "grid_jupyter.plans.models",
    "training_plan": "grid_jupyter.plans.models",
    "get_module": "grid_jupyter.tensors.modules",
    "local": "grid_jupyter.client.local",
    "make_hook": "grid_jupyter.client.sandbox",
    "move_module": "grid_jupyter.tensors.modules",
    "jupyter_node": "grid_jupyter.client.jupyter_node",
    "owner": "grid_jupyter.client.owner",
    "recording": "grid_jupyter.tensors.recording",
    "private_tensor": "grid_jupyter.tensors.private",
    "scale_model": "grid_jupyter.client.optims",
    "describe": "grid_jupyter.tensors.sending",
    "send": "grid_jupyter.tensors.sending",
    "send_": "grid_jupyter.tensors.sending",
    "tag": "grid_jupyter.tensors.sending",
    "send_module": "grid_jupyter.tensors.modules",
    "show_progress": "grid_jupyter.link.progress",
    "Fit": "grid_jupyter.client.fits",
    **dict.fromkeys(
        (
            "FedAdagrad",
            "FedAdam",
            "FedAvg",
            "FedAvgM",
            "FedBuff",
            "FedProx",
            "FedYogi",
            "Krum",
            "Median",
            "SCAFFOLD",
            "Serial",
            "TrimmedMean",
        ),
        "grid_jupyter.aggregation.strategies",
    ),
    **dict.fromkeys(
        (
            "CannotRequestObjectAttribute",
            "CompressionNotFoundException",
            "DependencyError",
            "EmptyCryptoPrimitiveStoreError",
            "GetNotPermittedError",
            "GridError",
            "IdNotUniqueError",
            "InvalidProtocolFileError",
            "InvalidTensorForRemoteGet",
            "NotAuthenticatedError",
            "NotCapturableError",
            "NotRecordableError",
            "ObjectNotFoundError",
            "PlanCommandUnknownError",
            "PlanInvalidError",
            "PureFrameworkTensorFoundError",
            "RemoteObjectFoundError",
            "ResponseSignatureError",
            "SendNotPermittedError",
            "SessionLostError",
            "TensorsNotCollocatedException",
            "TranslationUnavailableError",
            "WorkerNotFoundException",
        ),
        "grid_jupyter.errors",
    ),
}
"""Public name → the module that has it. docs/api.md describes them."""


def __getattr__(name: str) -> Any:
    if name == "widgets":
        return importlib.import_module("grid_jupyter.widgets")
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == __name__:
            raise
        from grid_jupyter.errors import DependencyError

        raise DependencyError(
            f"{name} needs {error.name}, which is not installed: pip install 'grid-jupyter[node]' (or [lab])"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC, "widgets"])


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "grid-jupyter"}]


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from grid_jupyter.server.extension import GridExtension

    return [{"module": "grid_jupyter", "app": GridExtension}]
