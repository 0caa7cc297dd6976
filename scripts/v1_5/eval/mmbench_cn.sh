#!/bin/bash
# MMBench, dev, in Chinese; circular. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
benchmark mmbench_cn ${SPLIT:+--split "$SPLIT"} "$@"
