# The driver's image: stage "build" makes a wheel and an environment with exactly the pinned packages, the last stage holds that environment and
# nothing that builds. Pin the base by digest where you build:
#   docker build --build-arg BASE=python:3.13-slim-bookworm@sha256:... -t registry.example.com/modelmount:0.1.0 .
# tests/e2e/test_image_stages.py runs these RUN lines as they stand.
ARG BASE=python:3.13-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY requirements/build.txt requirements/runtime.txt requirements/verify.txt requirements/
RUN python3 -m venv /build \
 && /build/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt
RUN python3 -m venv --without-pip /opt/modelmount \
 && /build/bin/pip --python /opt/modelmount/bin/python install --no-cache-dir --only-binary :all: --require-hashes -r requirements/runtime.txt -r requirements/verify.txt
COPY pyproject.toml README.md LICENSE ./
COPY driver driver
COPY csi csi
RUN /build/bin/python -m build --wheel --no-isolation --outdir /dist . \
 && /build/bin/pip --python /opt/modelmount/bin/python install --no-cache-dir --no-index --no-deps /dist/modelmount-*.whl

FROM ${BASE}
LABEL org.opencontainers.image.title="modelmount" \
      org.opencontainers.image.description="CSI node driver that mounts models from OCI registries" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/modelmount /opt/modelmount
ENV PATH=/opt/modelmount/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Root, because mounting into pods takes CAP_SYS_ADMIN in the host's mount namespace. The controller needs no rights: its manifest runs this image as
# user 65532.
USER 0
ENTRYPOINT ["/opt/modelmount/bin/modelmount"]
CMD ["serve"]
