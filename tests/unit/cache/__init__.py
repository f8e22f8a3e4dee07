"""Downloads, tags, lists, freshness and singleflight, with upstreams and stores that the tests write in memory."""
