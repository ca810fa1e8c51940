# Varnish (7.1, Debian 12) in front of Shoal: one request to the origin for each playlist revision and each part,
# however many viewers wait for it. See README.md.
vcl 4.1;

backend shoal {
    .host = "127.0.0.1";
    .port = "8080";
    # The origin holds a request for what comes next for up to three target durations: 30 s with the longest segments
    # that can be set. Raise it where a stream is pulled whose target duration is above 13 s.
    .first_byte_timeout = 40s;
    .between_bytes_timeout = 30s;
}

sub vcl_recv {
    # The tracker's socket.
    if (req.http.Upgrade ~ "(?i)websocket") {
        return (pipe);
    }
    # WHIP, the API, the pages: not for everybody, or small.
    if (req.url !~ "^/(live|vod)/" || (req.method != "GET" && req.method != "HEAD")) {
        return (pass);
    }
    # A recording as one file is too large, and asked for once.
    if (req.url ~ "/recording\.mp4$") {
        return (pass);
    }
    # Nothing under /live/ and /vod/ depends on them, and with them nothing would be shared.
    unset req.http.Cookie;
    unset req.http.Cache-Control;
    unset req.http.Pragma;
    return (hash);
}

sub vcl_pipe {
    set bereq.http.Upgrade = req.http.Upgrade;
    set bereq.http.Connection = req.http.Connection;
}

sub vcl_backend_response {
    if (bereq.url !~ "^/(live|vod)/" || bereq.uncacheable) {
        return (deliver);
    }
    # How long is the origin's word (Cache-Control). An old playlist served in grace would be the latency of all.
    set beresp.grace = 0s;
    set beresp.keep = 0s;
    if (beresp.status >= 400) {
        # Most errors say no-store: kept all the same, else Varnish would remember for two minutes that this URL is not to
        # be shared, and pass on a whole crowd. What may be kept for longer (a 400, the 503 of a part) is not: the origin
        # is asked once a second.
        set beresp.ttl = 1s;
    }
    return (deliver);
}

sub vcl_deliver {
    # For looking; players ignore it.
    if (obj.hits > 0) {
        set resp.http.X-Cache = "hit";
    } else {
        set resp.http.X-Cache = "miss";
    }
}
