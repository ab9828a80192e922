"""The contract that every plug-in keeps, as tests that any package can run on its own plug-ins.

A test file of a package that registers modules, regularizers, schedules or aggregators::

    from privopt.testing import PluginContract, registered

    class TestMyPlugins(PluginContract):
        plugins = registered("my_package")

pytest then tests that configs survive JSON, states resume bit for bit, frameworks and executors agree, and
the rest of `PluginContract`. Without pytest, `check_plugin` runs the same for one class. Both need hypothesis
for configurations; frameworks that are not installed are skipped. ``import privopt`` loads none of this.
"""

from .agreement import check_executors as check_executors
from .agreement import check_frameworks as check_frameworks
from .configs import check_bad_configs as check_bad_configs
from .configs import check_config as check_config
from .configs import check_declaration as check_declaration
from .configs import configs_of as configs_of
from .contract import AgreementContract as AgreementContract
from .contract import ConfigContract as ConfigContract
from .contract import Contract as Contract
from .contract import PluginContract as PluginContract
from .contract import SharingContract as SharingContract
from .contract import StateContract as StateContract
from .contract import StepContract as StepContract
from .contract import check_plugin as check_plugin
from .counting import check_schedule as check_schedule
from .inputs import gradients as gradients
from .killed import check_survives_kill as check_survives_kill
from .resume import check_declared_state as check_declared_state
from .resume import check_determinism as check_determinism
from .resume import check_reset as check_reset
from .resume import check_resume as check_resume
from .resume import check_round_reset as check_round_reset
from .sharing import check_aggregator as check_aggregator
from .sharing import check_aux_var as check_aux_var
from .sharing import check_foreign_aux_var as check_foreign_aux_var
from .sharing import check_received_memory as check_received_memory
from .steps import check_caller_arrays as check_caller_arrays
from .steps import check_failed_steps as check_failed_steps
from .steps import check_groups as check_groups
from .steps import check_integers as check_integers
from .steps import check_layout as check_layout
from .steps import check_memory as check_memory
from .steps import run_once as run_once
from .subject import ContractError as ContractError
from .subject import Subject as Subject
from .subject import difference as difference
from .subject import registered as registered
from .subject import same_state as same_state
