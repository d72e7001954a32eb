"""`ray_cluster.py`: a local Ray cluster of two nodes with one CPU each. Prints its address; reads lines
from standard input: ``remove`` kills the second node, ``add`` starts another. Ends with its input."""

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "remove":
        cluster.remove_node(node, allow_graceful=False)
    else:
        node = cluster.add_node(num_cpus=1)
    print("done", flush=True)
cluster.shutdown()
