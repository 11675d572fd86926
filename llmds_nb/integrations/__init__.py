"""Adapters to other libraries, one module and one optional extra each.

sklearn     HNSWTransformer, in place of sklearn.neighbors.KNeighborsTransformer
langchain   LlmdsVectorStore and LlmdsRetriever
haystack    LlmdsDocumentStore and its retrievers
prometheus  Collector: the stats() of any object as metrics, and a dashboard for Grafana
serve       create_app: both over HTTP, for `llmds-nb serve`
transformers  Engine: continuous batching of decoder models; PagedCache for their `generate`
ray         ShardedPipeline: one ranking over shards on many machines
vllm_events  Publisher and Subscriber: KV events in vLLM's form, from a KVCache into a PrefixRouter
"""
