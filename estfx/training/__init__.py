"""`estfx train`: configuration, text, checkpoints, the run folder, and what the terminal shows.

In goes a `RunConfig`; out comes a run folder with a trained model and its figures. Its doors are loaded when they are
first asked for: transformers' Trainer takes seconds, and most commands do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from estfx.lazy_names import lazy_names

if TYPE_CHECKING:
    from estfx.training.document_sources import STANDARD_LIBRARY as STANDARD_LIBRARY
    from estfx.training.document_sources import check_text as check_text
    from estfx.training.document_sources import documents as documents
    from estfx.training.model_argument import check_model as check_model
    from estfx.training.model_argument import holds_weights as holds_weights
    from estfx.training.model_argument import names_factory as names_factory
    from estfx.training.model_argument import parse_options as parse_options
    from estfx.training.model_presets import small_options as small_options
    from estfx.training.model_spec import build_model as build_model
    from estfx.training.model_spec import fitting_length as fitting_length
    from estfx.training.model_spec import merged_options as merged_options
    from estfx.training.model_spec import model_types as model_types
    from estfx.training.run_folder import RunFolder as RunFolder
    from estfx.training.run_folder import default_folder as default_folder
    from estfx.training.run_folder import environment as environment
    from estfx.training.step_records import LEFT_OUT as LEFT_OUT
    from estfx.training.text_data import Blocks as Blocks
    from estfx.training.text_data import Tokens as Tokens
    from estfx.training.text_data import corpus_of as corpus_of
    from estfx.training.text_data import held_out_of as held_out_of
    from estfx.training.text_data import is_held_out as is_held_out
    from estfx.training.text_data import tokens_of as tokens_of
    from estfx.training.train_config import DECAY as DECAY
    from estfx.training.train_config import DataSettings as DataSettings
    from estfx.training.train_config import ModelSettings as ModelSettings
    from estfx.training.train_config import RunConfig as RunConfig
    from estfx.training.train_config import ScheduleSettings as ScheduleSettings
    from estfx.training.train_config import TrainSettings as TrainSettings
    from estfx.training.train_recorder import TrainingFailedError as TrainingFailedError
    from estfx.training.train_summary import print_summary as print_summary
    from estfx.training.training_run import StoppedError as StoppedError
    from estfx.training.training_run import train as train

_MODULES = {
    "Blocks": "estfx.training.text_data",
    "names_factory": "estfx.training.model_argument",
    "DECAY": "estfx.training.train_config",
    "DataSettings": "estfx.training.train_config",
    "LEFT_OUT": "estfx.training.step_records",
    "ModelSettings": "estfx.training.train_config",
    "RunConfig": "estfx.training.train_config",
    "RunFolder": "estfx.training.run_folder",
    "STANDARD_LIBRARY": "estfx.training.document_sources",
    "ScheduleSettings": "estfx.training.train_config",
    "StoppedError": "estfx.training.training_run",
    "Tokens": "estfx.training.text_data",
    "TrainSettings": "estfx.training.train_config",
    "TrainingFailedError": "estfx.training.train_recorder",
    "build_model": "estfx.training.model_spec",
    "check_model": "estfx.training.model_argument",
    "check_text": "estfx.training.document_sources",
    "corpus_of": "estfx.training.text_data",
    "default_folder": "estfx.training.run_folder",
    "documents": "estfx.training.document_sources",
    "environment": "estfx.training.run_folder",
    "fitting_length": "estfx.training.model_spec",
    "holds_weights": "estfx.training.model_argument",
    "held_out_of": "estfx.training.text_data",
    "is_held_out": "estfx.training.text_data",
    "merged_options": "estfx.training.model_spec",
    "model_types": "estfx.training.model_spec",
    "parse_options": "estfx.training.model_argument",
    "print_summary": "estfx.training.train_summary",
    "small_options": "estfx.training.model_presets",
    "tokens_of": "estfx.training.text_data",
    "train": "estfx.training.training_run",
}
__all__ = [
    "DECAY",
    "LEFT_OUT",
    "STANDARD_LIBRARY",
    "Blocks",
    "DataSettings",
    "ModelSettings",
    "RunConfig",
    "RunFolder",
    "ScheduleSettings",
    "StoppedError",
    "Tokens",
    "TrainSettings",
    "TrainingFailedError",
    "build_model",
    "check_model",
    "check_text",
    "corpus_of",
    "default_folder",
    "documents",
    "environment",
    "fitting_length",
    "held_out_of",
    "holds_weights",
    "is_held_out",
    "merged_options",
    "model_types",
    "names_factory",
    "parse_options",
    "print_summary",
    "small_options",
    "tokens_of",
    "train",
]

if not TYPE_CHECKING:  # a type checker would take any name for a door
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
