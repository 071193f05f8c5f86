# Two images from one file:
#   docker build --target sidecar -t outrigger-sidecar .
#   docker build --target controller -t outrigger-controller .

FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/outrigger
COPY requirements/runtime.txt requirements/build.txt requirements/
RUN /opt/outrigger/bin/pip install --require-hashes -r requirements/runtime.txt \
 && python -m pip install --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY outrigger outrigger
COPY sidecar sidecar
COPY controller controller
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/outrigger/bin/pip install --no-deps /wheels/*.whl

FROM python:3.12-slim AS runtime
RUN useradd --uid 10001 --create-home --home-dir /var/lib/outrigger outrigger
COPY --from=build /opt/outrigger /opt/outrigger
ENV PATH=/opt/outrigger/bin:$PATH PYTHONUNBUFFERED=1 XDG_STATE_HOME=/var/lib/outrigger
USER 10001
VOLUME /var/lib/outrigger
STOPSIGNAL SIGTERM

FROM runtime AS controller
EXPOSE 7600 7601
ENTRYPOINT ["outrigger", "controller"]

FROM runtime AS sidecar
EXPOSE 7700 7701 7702
ENTRYPOINT ["outrigger", "sidecar"]
