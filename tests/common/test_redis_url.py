"""Options behind redis_url: only those of the way there; a database that is not there is said as such."""

from __future__ import annotations

import pytest

from common.access import connect
from common.errors import ConfigError, QueueError
from common.settings import RedisSettings, build


@pytest.mark.parametrize("option", ["protocol=3", "decode_responses=True", "foo=1", "protocol", "client_name=x&db=1"])
def test_other_options_are_one_line(option):
    with pytest.raises(ConfigError, match="redis_url") as error:
        build(RedisSettings, {"redis_url": f"redis://127.0.0.1:1/0?{option}"})
    assert option.partition("=")[0] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://h:1/0?ssl_cert_reqs=none", "unix:///tmp/r.sock?db=2"])
def test_the_way_there_may_be_said(url):
    assert build(RedisSettings, {"redis_url": url}).redis_url == url


def test_a_database_out_of_range(redis_url):
    with pytest.raises(QueueError, match="Redis refuses it"):
        connect(redis_url.rpartition("/")[0] + "/9999")
