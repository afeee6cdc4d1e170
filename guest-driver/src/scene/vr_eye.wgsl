// One eye's view into a room with four spheres under a square lamp.
// `samples` shadow rays per pixel: GPU time grows linearly with it.

struct Eye {
    size: vec2<u32>,
    eye: u32,
    samples: u32,
    pose: vec4<f32>, // yaw, pitch, x, time
}

@group(0) @binding(0) var<uniform> view: Eye;
// Both eyes side by side, packed rgba8.
@group(0) @binding(1) var<storage, read_write> pixels: array<u32>;

const ROOM = vec3<f32>(3.0, 2.0, 4.0); // half extents
const LAMP = vec3<f32>(0.0, 1.98, 0.5);

fn sphere(i: u32) -> vec4<f32> {
    let t = view.pose.w * 6.2831853;
    switch i {
        case 0u: { return vec4(-1.2, -1.1 + 0.25 * sin(t), 1.6, 0.9); }
        case 1u: { return vec4(1.1, -1.4, 1.0, 0.6); }
        case 2u: { return vec4(0.2 + cos(t), -1.65, 0.1 + 0.6 * sin(t), 0.35); }
        default: { return vec4(1.7 * sin(t), 0.6, 2.6, 0.4); }
    }
}

// Distance along the ray, or a large number.
fn hit_sphere(from_: vec3<f32>, dir: vec3<f32>, s: vec4<f32>) -> f32 {
    let oc = from_ - s.xyz;
    let b = dot(oc, dir);
    let h = b * b - dot(oc, oc) + s.w * s.w;
    let t = -b - sqrt(max(h, 0.0));
    return select(1e9, t, h > 0.0 && t > 1e-3);
}

fn hash(n: u32) -> f32 {
    var x = n * 747796405u + 2891336453u;
    x = ((x >> ((x >> 28u) + 4u)) ^ x) * 277803737u;
    return f32((x >> 22u) ^ x) * 2.3283064e-10;
}

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) gid: vec3<u32>) {
    if any(gid.xy >= view.size) { return; }
    let size = vec2<f32>(view.size);
    let ndc = (vec2<f32>(gid.xy) + 0.5 - 0.5 * size) / (0.5 * size.y);
    let yaw = view.pose.x;
    let pitch = view.pose.y;
    var dir = normalize(vec3(ndc.x, -ndc.y, 1.3));
    dir = vec3(dir.x, dir.y * cos(pitch) + dir.z * sin(pitch), dir.z * cos(pitch) - dir.y * sin(pitch));
    dir = vec3(dir.x * cos(yaw) + dir.z * sin(yaw), dir.y, dir.z * cos(yaw) - dir.x * sin(yaw));
    let ipd = 0.064 * (f32(view.eye) - 0.5);
    let origin = vec3(view.pose.z + ipd, -0.2, -3.2);

    // The room: the nearest wall in the ray's direction.
    let inv = 1.0 / (dir + vec3(1e-6));
    let far = (sign(inv) * ROOM - origin) * inv;
    var t = min(far.x, min(far.y, far.z));
    var at = origin + dir * t;
    var normal = vec3<f32>(0.0);
    var albedo = vec3<f32>(0.8, 0.78, 0.74);
    if t == far.x {
        normal = vec3(-sign(dir.x), 0.0, 0.0);
        albedo = select(vec3(0.25, 0.55, 0.62), vec3(0.75, 0.32, 0.25), dir.x < 0.0);
        let tile = abs(fract(at.zy * 1.0) - 0.5);
        albedo *= 0.82 + 0.18 * smoothstep(0.0, 0.03, 0.49 - max(tile.x, tile.y));
    } else if t == far.y {
        normal = vec3(0.0, -sign(dir.y), 0.0);
        let check = (i32(floor(at.x * 1.25)) + i32(floor(at.z * 1.25))) & 1;
        if dir.y < 0.0 { albedo = select(vec3(0.22), vec3(0.82), check == 0); }
    } else {
        normal = vec3(0.0, 0.0, -sign(dir.z));
        let ring = length(at.xy - vec2(0.0, 0.1));
        albedo = mix(vec3(0.28, 0.26, 0.42), vec3(0.85, 0.72, 0.42), smoothstep(0.04, 0.0, abs(fract(ring * 1.6) - 0.5) - 0.12));
    }
    for (var i = 0u; i < 4u; i++) {
        let s = sphere(i);
        let d = hit_sphere(origin, dir, s);
        if d < t {
            t = d;
            at = origin + dir * d;
            normal = (at - s.xyz) / s.w;
            albedo = 0.55 + 0.4 * cos(vec3(0.3, 2.1, 4.2) + 1.7 * f32(i));
        }
    }

    // The lamp as an area: one jittered point of it per sample.
    let n = max(view.samples, 1u);
    var light = 0.0;
    for (var i = 0u; i < n; i++) {
        let seed = (gid.y * view.size.x + gid.x) * 64u + i;
        let point = LAMP + vec3(hash(seed) - 0.5, 0.0, hash(seed + 0x9e3779b9u) - 0.5) * 1.6;
        let way = point - at;
        let dist = length(way);
        let to_lamp = way / dist;
        var free = 1.0;
        for (var k = 0u; k < 4u; k++) {
            free *= select(1.0, 0.0, hit_sphere(at + normal * 0.01, to_lamp, sphere(k)) < dist);
        }
        light += free * max(dot(normal, to_lamp), 0.0) * max(to_lamp.y, 0.0) / (0.35 + 0.16 * dist * dist);
    }
    light /= f32(n);

    let half_way = normalize(normalize(LAMP - at) - dir);
    let gloss = pow(max(dot(normal, half_way), 0.0), 48.0) * 0.5 * light;
    var colour = albedo * (0.12 + 1.15 * light) + gloss;
    let lamp = max(abs(at.x - LAMP.x), abs(at.z - LAMP.z));
    if at.y > 1.97 && lamp < 0.8 { colour = vec3(1.0, 0.97, 0.88); }
    colour = pow(clamp(colour, vec3(0.0), vec3(1.0)), vec3(1.0 / 2.2));
    pixels[gid.y * view.size.x * 2u + view.eye * view.size.x + gid.x] = pack4x8unorm(vec4(colour, 1.0));
}
