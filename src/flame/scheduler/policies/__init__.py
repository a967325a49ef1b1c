"""The policies that come with Flame."""

from flame.scheduler.policies.binpack import Binpack
from flame.scheduler.policies.drf import Drf
from flame.scheduler.policies.gang import Gang
from flame.scheduler.policies.locality import Locality
from flame.scheduler.policies.priority import Priority
from flame.scheduler.policies.spread import Spread
from flame.scheduler.policy import Policy

BUILT_IN: dict[str, type[Policy]] = {policy.name: policy for policy in (Drf, Priority, Gang, Locality, Binpack, Spread)}

__all__ = ["BUILT_IN", "Binpack", "Drf", "Gang", "Locality", "Priority", "Spread"]
