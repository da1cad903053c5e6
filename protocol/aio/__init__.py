"""The shell: sockets, timers, disks and processes. It carries out what the pure parts decide, and decides nothing itself.

    link            one TCP connection: a session on a transport, messages pushed or pulled, raw bytes received in place
    dialling        one dial with its hello and its deadline
    lane            all control connections with one life of one peer, and what waits to be sent on them
    connections     one listener for several nodes, the pool of lanes, who is told that a peer is lost
    bulk            records, each on a connection of its own
    store           the records held, in memory and on disk
    driver          the only loop that calls an overlay node's handle()
    process         what both daemons do to start, to be interrupted and to say what went wrong
    settings        what both daemons' settings have in common: sources, their order, mistakes told with their place
    status_client   asks a running daemon how it is, or to stop
"""
