"""One module at a time: no processes, and no network beyond loopback sockets; the packages mirror `dockyard/`."""
