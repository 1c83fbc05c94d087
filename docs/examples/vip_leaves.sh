#!/bin/sh
# End the connections of addresses that are about to leave this host, while their peers can still be reached.
#
#   vip_leaves.sh ADDRESS...
#
# It never fails: that a connection could not be ended is no reason to keep an address.
set -u

filter=
for address; do
    case $address in
    *:*) address="[$address]" ;;
    esac
    filter="${filter:+$filter or }src $address"
done

socklb destroy "$filter" || echo "vip_leaves.sh: socklb ended with $?" >&2
exit 0
