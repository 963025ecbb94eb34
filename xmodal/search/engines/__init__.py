"""Collections that live on several servers of vectors: Milvus, PostgreSQL with pgvector, folders."""
