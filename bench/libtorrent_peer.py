"""One peer of a libtorrent swarm: waits for a line, then seeds or downloads, and
says when it is done. Usage: MODE TORRENT DIR LISTEN PEER,PEER,..."""

import os
import signal
import sys
import threading
import time

import libtorrent as lt

mode, torrent, directory, listen, peers = sys.argv[1:6]
session = lt.session({
    "listen_interfaces": listen,
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "alert_mask": lt.alert.category_t.status_notification,
})
print("ready", flush=True)
sys.stdin.readline()

info = lt.torrent_info(torrent)
params = lt.add_torrent_params()
params.ti = info
params.save_path = directory
params.trackers = []
if mode != "leech":
    params.flags |= lt.torrent_flags.seed_mode
if mode == "super":
    params.flags |= lt.torrent_flags.super_seeding
params.flags &= ~lt.torrent_flags.paused
params.flags &= ~lt.torrent_flags.auto_managed
handle = session.add_torrent(params)
handle.replace_trackers([])
if mode != "leech":
    print("seeding", flush=True)

ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
done = mode != "leech"
next_dial = 0
while not ended.is_set():
    if not done and time.monotonic() >= next_dial:
        for peer in peers.split(","):
            if peer != listen:
                host, port = peer.split(":")
                handle.connect_peer((host, int(port)))
        next_dial = time.monotonic() + 2
    session.wait_for_alert(100)
    for alert in session.pop_alerts():
        if isinstance(alert, lt.torrent_finished_alert) and not done:
            done = True
            print("done", time.time(), flush=True)
print("sent", handle.status().total_payload_upload, flush=True)
os._exit(0)  # libtorrent would say goodbye to every peer first
