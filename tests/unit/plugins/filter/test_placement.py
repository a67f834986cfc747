from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter.placement import placement

DEVICES = [{"id": "GPU-4090", "device": "CUDA0"}, {"id": "GPU-3090", "device": "CUDA1"}]


def test_layers_are_named_by_device_id_in_device_order():
    assert placement(DEVICES, [45, 36]) == [{"device": "GPU-4090", "layers": 45}, {"device": "GPU-3090", "layers": 36}]


def test_a_device_without_layers_is_kept():
    assert placement(DEVICES, [81, 0])[1] == {"device": "GPU-3090", "layers": 0}


@pytest.mark.parametrize(("devices", "layers"), [(DEVICES, [81]), ([{}], [81]), (DEVICES, 81)])
def test_what_does_not_belong_together_is_refused(devices, layers):
    with pytest.raises(AnsibleFilterError, match="placement"):
        placement(devices, layers)
