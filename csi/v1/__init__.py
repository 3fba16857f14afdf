"""The Container Storage Interface: messages in `csi_pb2`, clients in `csi_pb2_grpc`."""
